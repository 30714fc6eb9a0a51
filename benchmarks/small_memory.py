"""Memory and time of training on a frozen base in 4, 8, 16 and 32 bits, at real sizes.

    python benchmarks/small_memory.py --output runs/small-memory

Writes GPT-2 XL's and Qwen2.5-1.5B's size with random weights (one at a time, 7 GB of disk with its quantised file,
removed afterwards), and takes SmolLM2 from the package index. On each, `jittor-lora train` runs some steps in its own
process: r = 8 on the default modules, 4 texts of 256 tokens per step with the loss on all but the first, activation
checkpointing. Reported are the peak of resident memory (VmHWM) while the base is quantised and while it trains, how
much of the latter was the mapped file's and could be given back, and the median time of a step. --threads 1
--processor-time counts seconds of the processor, for machines on which others work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from jittor_lora.benchmark.base import GPT2, RandomWeights
from jittor_lora.files.atomic import write_json
from jittor_lora.formats.bases import SMOLLM2, cache_folder, load_base, resolve_base
from jittor_lora.formats.hugging_face import Checkpoint, write_checkpoint
from jittor_lora.model.config import ModelConfig
from jittor_lora.system.machine import available_cores, cpu_model

MODELS = {
    # Radford et al. 2019, table 2
    "gpt2-xl": {**GPT2, "n_embd": 1600, "n_layer": 48, "n_head": 25},
    # Qwen2.5-1.5B's config.json
    "qwen2.5-1.5b": {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "num_hidden_layers": 28,
                     "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
                     "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
                     "tie_word_embeddings": True, "bos_token_id": 151643, "eos_token_id": 151643},
    SMOLLM2: None,
}
PRECISIONS = ("auto", "fp32", "bf16", "q8", "q4")
TEXTS, TOKENS = 4, 256  # per step, per text
WORDS = "the of and to in that is was for on with as by at from it an were which are this also be had or has".split()
ON_THE_PROCESSOR = """
import sys, time
time.perf_counter = time.process_time
from jittor_lora.cli.main import main
sys.exit(main())
"""


def provide(name: str, folder: Path) -> str:
    """The base for `--base`; random weights are written to `folder`."""
    source = MODELS[name]
    if source is None:
        return name
    config = ModelConfig.from_hugging_face(source, "config.json")
    if (folder / "config.json").is_file():  # written last, by a run that was ended
        return str(folder)
    write_checkpoint(folder, Checkpoint(config, RandomWeights(config), None))
    if config.family != "gpt2":  # whose tokenizer is in the package
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def write_texts(base: str, path: Path, count: int) -> None:
    """Prompts with completions of `TOKENS` tokens together, all different."""
    tokenizer = load_base(resolve_base(base), say=lambda text: None)[1]
    with open(path, "w", encoding="utf-8") as stream:
        for number in range(count):
            text, place = f"{number}:", number
            while len(tokenizer.encode(text)) < TOKENS - 6:
                text, place = f"{text} {WORDS[place * place % len(WORDS)]}", place + 1
            stream.write(json.dumps({"prompt": text[:2], "completion": text[2:]}) + "\n")


def trained(command: list[str], log: Path) -> dict[str, float]:
    """Run a command, and watch its memory from outside, in MiB."""
    peak, mapped = 0.0, 0.0
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        while process.poll() is None:
            try:
                status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().split("\n")
                              if ":" in line)
                peak = max(peak, int(status["VmHWM"].split()[0]) / 1024)
                mapped = max(mapped, int(status["RssFile"].split()[0]) / 1024)
            except (OSError, KeyError):
                pass
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exited with code {process.returncode}:\n{log.read_text(encoding='utf-8')}")
    return {"peak_mib": peak, "mapped_mib": mapped}


def measured(base: str, name: str, precision: str, args: argparse.Namespace) -> dict[str, object]:
    """A base in one precision. The first process quantises it."""
    folder, found = args.output / f"{name}-{precision}", {"model": name, "base_precision": precision}
    program = ["-c", ON_THE_PROCESSOR] if args.processor_time else ["-m", "jittor_lora"]
    quantising = [sys.executable, "-c", "import sys\nfrom jittor_lora.formats.bases import load_base, resolve_base\n"
                  "from jittor_lora.formats.quantised_base import in_precision\n"
                  f"base = resolve_base({base!r})\nin_precision(load_base(base)[0], base, {precision!r})"]
    started = time.perf_counter()
    found["quantising"] = trained(quantising, folder.with_name(f"{folder.name}.quantising.log"))
    found["quantising"]["seconds"] = time.perf_counter() - started
    command = [sys.executable, *program, "train", "--base", base, "--data", str(args.output / f"{name}.jsonl"),
               "--base-precision", precision, "--precision", args.precision, "--output", str(folder), "--batch-size",
               str(TEXTS), "--max-steps", str(args.steps), "--max-tokens-per-stream", str(TEXTS * TOKENS),
               "--activation-checkpointing", "--threads", str(args.threads)]
    found["training"] = trained(command, folder.with_name(f"{folder.name}.log"))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [step for step in steps if "grad_norm" in step]
    found["loss"], found["tokens"] = steps[-1]["train_loss"], steps[-1]["tokens"]
    found["seconds_per_step"] = statistics.median(step["seconds"] for step in steps[1:] or steps)
    return found


def row(found: dict[str, object]) -> str:
    quantising, training = found["quantising"], found["training"]
    return (f"| {found['model']} | {found['base_precision']} | {quantising['seconds']:,.0f} s | "
            f"{quantising['peak_mib'] / 1024:.2f} GiB | {training['peak_mib'] / 1024:.2f} GiB | "
            f"{training['mapped_mib'] / 1024:.2f} GiB | {found['seconds_per_step']:.1f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--base-precisions", nargs="+", default=["q4", "q8", "bf16", "fp32"], choices=PRECISIONS)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="of the products")
    parser.add_argument("--steps", type=int, default=4, help="the first of several is not counted")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--processor-time", action="store_true")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"{cpu_model()}, {args.threads} threads, products in {args.precision} where the processor has it\n\n"
          "| base | kept in | quantised in | peak | training: peak | of which mapped | step |\n" + "|---" * 7 + "|")
    results = []
    for name in args.models:
        weights = args.output / f"small-memory-{name}"
        try:
            base = provide(name, weights)
            write_texts(base, args.output / f"{name}.jsonl", TEXTS * args.steps)
            for precision in args.base_precisions:
                results.append(measured(base, name, precision, args))
                print(row(results[-1]), flush=True)
                write_json(args.output / "small-memory.json", results)
                for file in (cache_folder() / "quantised").glob(f"{weights.name}-*.gguf"):
                    file.unlink()
        finally:
            for file in weights.iterdir() if weights.is_dir() else ():
                file.unlink()


if __name__ == "__main__":
    main()
