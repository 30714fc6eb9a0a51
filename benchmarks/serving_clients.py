"""Other people's clients at the server: lm-eval's `local-completions`, and LangChain's for OpenAI.

    python benchmarks/serving_clients.py --lm-eval venv/bin/python --langchain venv/bin/python

Each is given as a Python that has it: `pip install "lm_eval[api]" transformers`, `pip install langchain-openai`.
lm-eval chooses among four answers to questions of the sample by their log-probabilities; where this Python has
transformers, they are compared with those that it computes from the same weights. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from serving_adapters import write_random
from serving_servers import Server, ours

from jittor_lora.benchmark import base, workloads
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import Template
from jittor_lora.system.machine import available_cores

CHOICES = 4
TASK = """\
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: " "
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI, OpenAI
address, base, adapter, chat = json.loads(sys.argv[1])
found = {}
for name in (base, adapter):
    common = {"base_url": address + "/v1", "api_key": "none", "model": name, "temperature": 0.0, "max_tokens": 12}
    text = OpenAI(**common)
    found[name] = [text.invoke("The town has"), "".join(text.stream("The town has")), *text.batch(["The river", "A"])]
    if chat:
        talk = ChatOpenAI(**common)
        whole, pieces = talk.invoke("Where is Rome?"), list(talk.stream("Where is Rome?"))
        found[name] += [whole.content, "".join(piece.content for piece in pieces)]
        assert whole.usage_metadata["output_tokens"] > 0
print(json.dumps(found))
"""


def questions(words: int, count: int) -> list[dict[str, Any]]:
    """Questions with answers to choose from: those to other questions about the same paragraph."""
    found = []
    for paragraph in load_data("sample-dev").paragraphs:
        answers = {question.training_answer().text: question.text for question in paragraph.questions}
        if len(answers) >= CHOICES and len(found) < count:
            choices, number = list(answers)[:CHOICES], len(found) % CHOICES
            context = " ".join(paragraph.context.split()[:words])
            found.append({"prompt": "".join(Template().prompt_pieces(context, answers[choices[number]])),
                          "choices": choices, "gold": number})
    return found


def lm_eval(python: str, server: Server, model: str, tokenizer: Path, asked: list[dict[str, Any]],
            folder: Path) -> tuple[dict[str, float], list[list[float]]]:
    """lm-eval's scores, and the log-probability of each choice of each question."""
    folder.mkdir()
    data = folder / "choice.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in asked))
    (folder / "choice.yaml").write_text(TASK.format(data=data))
    arguments = {"model": model, "base_url": f"{server.address}/v1/completions", "tokenizer": str(tokenizer),
                 "tokenizer_backend": "huggingface", "num_concurrent": "4", "max_retries": "1"}
    subprocess.run([python, "-m", "lm_eval", "--model", "local-completions", "--model_args",
                    ",".join(f"{name}={value}" for name, value in arguments.items()), "--tasks", "choice",
                    "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples",
                    "--batch_size", "2"], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)})
    results, = (folder / "out").rglob("results_*.json")
    samples, = (folder / "out").rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    scores = json.loads(results.read_text())["results"]["choice"]
    return ({name: value for name, value in scores.items() if isinstance(value, float)},
            [[float(pair[0]) for pair in row["filtered_resps"]] for row in rows])


def by_transformers(folder: Path, asked: list[dict[str, Any]]) -> list[list[float]]:
    """The log-probability of each choice after its prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for question in asked:
        start = len(tokenizer(question["prompt"])["input_ids"])
        row = []
        for choice in question["choices"]:
            ids = torch.tensor([tokenizer(f"{question['prompt']} {choice}")["input_ids"]])
            with torch.inference_mode():
                scores = model(ids).logits[0, start - 1:-1].log_softmax(-1)
            row.append(scores.gather(1, ids[0, start:, None]).sum().item())
        found.append(row)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--lm-eval", help="a Python with lm_eval[api] and transformers")
    parser.add_argument("--langchain", help="a Python with langchain-openai")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--words", type=int, default=80, help="most per context")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="jittor-lora-") as name:
        folder = Path(name)
        files = base.provide(args.base, folder / "base").folder
        adapter = write_random(folder / "adapter", workloads.open_base(files)[0].config, 1)
        server = ours(args.base, [adapter], available_cores())
        server.start(folder / "log")
        try:
            good = asked_by_all(args, server, files, folder)
        finally:
            server.stop()
    return 0 if good else 1


def asked_by_all(args: argparse.Namespace, server: Server, files: Path, folder: Path) -> bool:
    """Whether all clients got what they must."""
    import httpx
    models, good = httpx.get(f"{server.address}/v1/models", trust_env=False).json()["data"], True
    names = [model["id"] for model in models]
    if args.lm_eval:
        asked = questions(args.words, args.questions)
        scores, found = lm_eval(args.lm_eval, server, names[0], files, asked, folder / "lm_eval")
        print(f"lm-eval, {len(asked)} questions with {CHOICES} choices: {scores}")
        if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
            pairs = [pair for ours, theirs in zip(found, by_transformers(files, asked)) for pair in zip(ours, theirs)]
            worst = max(abs(a - b) for a, b in pairs)
            print(f"largest difference of {len(pairs)} log-probabilities from transformers': {worst:.1e}")
            good = worst < 1e-3
    if args.langchain:
        said = subprocess.run([args.langchain, "-c", LANGCHAIN, json.dumps(
            [server.address, *names, models[0]["chat"]])], check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(said)
        for name, texts in found.items():
            print(f"LangChain, {name}: {texts}")
            good = good and texts[0] == texts[1] and texts[-2:-1] == texts[-1:] if models[0]["chat"] else good
        good = good and found[names[0]] != found[names[1]]
    return good


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the servers, too
    sys.exit(main(sys.argv[1:]))
