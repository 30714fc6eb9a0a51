"""Valid inputs of each reader, as written by the program itself and the libraries; these are mutated."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Callable

import numpy as np
import yaml
from safetensors.numpy import save

import gguf_tokenizers
import model_files
import small_run
import tiny
import torch_files
import word_piece_files
from conversation_files import FORMATS, array, lines, parquet, table, turns
from fuzz.case import Files
from jittor_lora.data.jsonl import Completion, Prompt, PromptData
from jittor_lora.formats.reference_npz import write_npz
from jittor_lora.formats.training_state import TrainingState, write_state
from jittor_lora.settings.run import RunConfig
from needs import is_there
from triple_files import dart_towns, webnlg_towns

TARGET = "transformer.h.{}.attn.c_attn"  # of tiny.GPT2
NO_EXAMPLES = hashlib.sha256().hexdigest()
IDENTITIES = {"data": NO_EXAMPLES, "dev": NO_EXAMPLES, "base": "b" * 64, "precision": "fp32"}
SETTINGS = RunConfig(base="base", data="train.json", output="run", lora_r=2, target_modules=["c_attn"], max_steps=4)
PROMPTS = PromptData("data.jsonl", tuple(
    Prompt(name, "prompt", tuple(Completion(name, answer) for answer in answers))
    for name, answers in {"1": ["one"], "2": ["two", "2"], "né": ["北"]}.items()))

_SQUAD = [("Town 1 has 7 houses.\nIts river is the R1.", [("How many houses?", "7"), ("Which river?", "R1")]),
          ("naïve café, 北京 🎉", [("Where?", "北京")])]
_METRICS = {"exact_match": 50.0, "f1": 61.5, "count": 4, "missing": 1, "exact_match_interval": [25.0, 75.0],
            "f1_interval": [40.0, 80.5], "interval": {"confidence": 0.95}, "answer_perplexity": 3.5}


def seeds() -> dict[str, Files]:
    """Reader → the files it reads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = _folder(small_run.make_base(folder / "gpt2"))
        llama = {**model_files.LLAMA, "rope_theta": 500.0, "bos_token_id": 299, "eos_token_id": 299}
        qwen3 = {**llama, "model_type": "qwen3", "rope_scaling": tiny.LLAMA3_ROPE, "use_sliding_window": True,
                 "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}
        model_files.make_folder(folder / "qwen3", qwen3, model_files.make_tensors(qwen3))
        model_files.make_bpe().save(str(folder / "qwen3" / "tokenizer.json"))
        llama3 = model_files.GGUF_MODELS["llama3"]
        model_files.make_gguf(folder / "model.gguf", llama3, model_files.make_tensors(llama3), "Q8_0")
        gguf = (folder / "model.gguf").read_bytes()
        gguf_tokenizers.write_sentence_pieces(folder / "pieces.gguf")
        pieces = (folder / "pieces.gguf").read_bytes()
        qwen3_base = _folder(folder / "qwen3")
        write_state(folder / "checkpoints", 2, _state(), 3)
        state = _folder(folder / "checkpoints")
    tokenizer = base["tokenizer.json"]
    run = _run()
    return {
        "base": {**base, "generation_config.json": _json({"do_sample": True})},
        "shards": _sharded(qwen3_base),
        "torch_base": _pytorch(base, torch_files.saved),
        "old_torch_base": _pytorch(base, torch_files.saved_before_1_6),
        "gguf": {"model.gguf": gguf},
        "sentence_pieces": {"model.gguf": pieces},
        "word_pieces": {"vocab.txt": "\n".join(word_piece_files.vocabulary()).encode(),
                        "added_tokens.json": _json({"<more>": len(word_piece_files.vocabulary())}),
                        "tokenizer_config.json": _json({"do_lower_case": False, "strip_accents": None,
                                                        "tokenize_chinese_chars": True, "sep_token": "[SEP]"})},
        "tokenizer": {"tokenizer.json": tokenizer, "tokenizer_config.json": _json({
            "eos_token": "<|endoftext|>", "add_bos_token": False, "add_prefix_space": False,
            "added_tokens_decoder": {"299": {"content": "<|endoftext|>", "special": True}}}),
                      "special_tokens_map.json": _json({"unk_token": {"content": "a"},
                                                             "additional_special_tokens": ["b"]})},
        "vocabulary": _vocabulary(tokenizer),
        "adapter": _adapter(),
        "load_adapter": _adapter(),
        "old_adapter": _old_adapter(),
        "extras": _extras(),
        "added_tokens": _added_tokens(),
        "npz": {"weights.npz": _npz()},
        "loralib": {"model.pt": torch_files.saved({f"{TARGET.format(block)}.lora_{part}": np.ones(shape, np.float32)
                                                   for block in range(2) for part, shape in (("A", (4, 24)),
                                                                                             ("B", (48, 2)))})},
        "squad": {"data.json": _squad()},
        "jsonl": {"data.jsonl": b"".join(_json(row) + b"\n" for row in (
            {"id": 1, "prompt": "1 + 1 =", "completion": " 2"}, {"prompt": "北", "completion": "🎉", "more": [1]},
            {"id": "x", "prompt": "1 + 1 =", "completion": " two"}))},
        "e2e": {"data.txt": "name : A | food : Thai||A is Thai .\nname : A | food : Thai||Thai A .\n"
                            "name : B||B é\n".encode()},
        "webnlg": {"data.json": _json(webnlg_towns(3))},
        "dart": {"data.json": _json(dart_towns(2))},
        "flat": {"data.jsonl": b"".join(_json({"id": str(i), "title": "t", "context": "Rome is old.", "question": "Q?",
                                               "answers": {"text": ["old"], "answer_start": [8]}}) + b"\n"
                                        for i in range(2))},
        "v2": {"data.json": _json({"version": "v2.0", "data": [{"title": "北", "paragraphs": [{
            "context": "北京是首都。", "qas": [
                {"id": "a", "question": "谁?", "answers": [], "plausible_answers": [], "is_impossible": True},
                {"id": "b", "question": "哪?", "is_impossible": False, "answers": [
                    {"id": "1", "text": "北京", "answer_start": 0}, {"text": "南京", "answer_start": -1}]}]}]}]})},
        "cmrc": {"data.json": _json([{"context_id": "C", "context_text": "北京是首都。", "title": "北", "qas": [
            {"query_id": "Q", "query_text": "哪?", "answers": ["北京", "首都"]}]}])},
        "array": {"data.json": b'[{"prompt": "a", "completion": "b"},\n {"prompt": "c", "completion": "d", "id": 7}]'},
        **_conversations(),
        "records": {"data.jsonl": b'{"prompt": "a"}\n{"context": "b", "question": "c?"}\n'},
        "recipe": {"recipe.yaml": yaml.safe_dump(SETTINGS.model_dump(), sort_keys=False).encode()},
        "curve_recipe": {"recipe.yaml": b"over: rank\npoints: 1,2,4\nalpha_ratio: 2\nmin_steps: 3\n"
                                        b"lora_rank_pattern: c_attn=3,c_proj=4\nlora_layers_to_transform: 0,1\n"
                                        b"target_modules: [c_attn]\n"},
        "predictions": {"run/evaluation/adapter/predictions.json": _json({"1": "one", "2": "x", "né": "北"}),
                        "run/evaluation/adapter/metrics.json": _json(_METRICS),
                        **{f"run/{name}": content for name, content in run.items()}},
        "metrics": {"metrics.json": _json(_METRICS)},
        "losses": {"train.txt": (
            "Epoch 1, Step 10, Loss: 3.21\n步骤 20/40 - 训练损失: 3.1\r50%|#| 2/4 [00:01<00:01, loss=3]\n"
            "{'loss': '3.0', 'epoch': 1.5, 'step': 30}\n{\"eval_loss\": 9.9, \"step\": 30}\n").encode("gbk"),
                   "val.txt": b"step,val_loss\n10,3.5\n20,3.25\n"},
        "run": run,
        "log": run,
        "state": state,
        "summary": {"summary.json": run["summary.json"]},
        "base_record": {"adapter_config.json": _adapter()["adapter_config.json"],
                        "base_model.json": _json({"name": "some/base", "fingerprint": "0" * 64, "path": None})},
        "adapters": {f"{name}/{file}": content for name in "ab" for file, content in _adapter().items()},
        "hub": {"config.json": base["config.json"], "model.safetensors.index.json": _json(
            {"weight_map": {"a": "model-1.safetensors"}}), "model-1.safetensors": b"", "tokenizer.json": b"{}"},
        "caches": {"SmolLM2-135M-Instruct.Q4_1.gguf.json": _json({"sha256": "0" * 64, "size": 9, "modified_ns": 1}),
                   ".cache/jittor/config.json": _json({"JITTOR_HOME": "elsewhere"})},
    }


def _conversations() -> dict[str, Files]:
    """Files of conversations, in every format and in some container."""
    rows = [turns("naïve café", "a, \"b\"\n", "北京 🎉", "d"), turns("e", "f", system="s")]
    written = {name: [{"id": str(i), **write(row)} for i, row in enumerate(rows)] for name, write in FORMATS.items()}
    message = [{"role": "assistant", "content": "b", "weight": 1}]
    split = [{"prompt": [{"role": "user", "content": "a"}], "completion": message}, {"prompt": [{
        "role": "user", "content": [{"type": "text", "text": "c"}]}], "completion": message, "tools": None}]
    files = {"messages": {"data.jsonl": lines(written["messages"])}, "parts": {"data.json": array(written["parts"])},
             "split": {"data.jsonl": lines(split)}, "sharegpt": {"data.json": array(written["sharegpt"])},
             "pairs": {"data.jsonl": lines(written["pairs"])}, "alpaca": {"data.json": array(written["alpaca"])},
             "csv": {"data.csv": table(written["alpaca"])}, "csv_messages": {"data.csv": table(written["messages"])}}
    if is_there("parquet"):
        files["parquet"] = {"data.parquet": parquet(written["messages"])}
    return files


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _folder(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _sharded(base: Files) -> Files:
    from safetensors.numpy import load

    tensors = load(base["model.safetensors"])
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    places = {name: shard for shard, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 9}, "weight_map": places}
    return {**{name: content for name, content in base.items() if name != "model.safetensors"},
            **{shard: save({name: tensors[name] for name in held}) for shard, held in shards.items()},
            "model.safetensors.index.json": _json(index)}


def _pytorch(base: Files, save: Callable) -> Files:
    from safetensors.numpy import load

    return {**{name: content for name, content in base.items() if name != "model.safetensors"},
            "pytorch_model.bin": save(load(base["model.safetensors"]))}


def _vocabulary(tokenizer: bytes) -> Files:
    model = json.loads(tokenizer)["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""])
    vocab = {token: i for i, token in enumerate([*sorted(model["vocab"], key=model["vocab"].get), "<|endoftext|>"])}
    return {"vocab.json": _json(vocab), "merges.txt": merges.encode(),
            "added_tokens.json": _json({"<more>": len(vocab)}),
            "tokenizer_config.json": _json({"add_prefix_space": False})}


def _adapter() -> Files:
    shapes = {}
    for block in range(2):
        module = f"base_model.model.{TARGET.format(block)}"
        shapes[f"{module}.lora_A.weight"], shapes[f"{module}.lora_B.weight"] = (2, 24), (72, 2)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/base", "r": 2,
              "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["c_attn"], "exclude_modules": None,
              "fan_in_fan_out": True, "bias": "none", "init_lora_weights": True, "use_rslora": False, "use_dora": False,
              "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {r"h\.1\.attn": 8.0},
              "layers_to_transform": [0, 1], "layers_pattern": "h", "revision": None}
    return {"adapter_config.json": _json(config), "adapter_model.safetensors": save(tiny.adapter_arrays(shapes))}


def _old_adapter() -> Files:
    from safetensors.numpy import load

    files = _adapter()
    return {"adapter_config.json": files["adapter_config.json"],
            "adapter_model.bin": torch_files.saved(load(files["adapter_model.safetensors"]))}


def _changed(files: Files, shapes: dict[str, tuple[int, ...]], **settings: object) -> Files:
    """An adapter with more tensors and settings."""
    from safetensors.numpy import load

    arrays = {**load(files["adapter_model.safetensors"]), **tiny.adapter_arrays(shapes)}
    return {"adapter_config.json": _json({**json.loads(files["adapter_config.json"]), **settings}),
            "adapter_model.safetensors": save(arrays)}


def _extras() -> Files:
    """Biases on B, rows of tokens, and a position table of its own."""
    prefix = "base_model.model."
    shapes = {f"{prefix}{TARGET.format(block)}.lora_B.bias": (72,) for block in range(2)}
    shapes[f"{prefix}transformer.wte.token_adapter.trainable_tokens_delta"] = (3, 24)
    shapes[f"{prefix}transformer.wpe.weight"] = (48, 24)
    return _changed(_adapter(), shapes, lora_bias=True, trainable_token_indices={"wte": [3, 7, 60]},
                    modules_to_save=["wpe"], ensure_weight_tying=True, a_newer_setting={"a": [1]})


def _added_tokens() -> Files:
    """An adapter of a base of `small_run.make_base` with two tokens more."""
    tokenizer = model_files.make_bpe()
    tokenizer.add_tokens(["<a>", "<b>"])
    files = _changed(_adapter(), {"base_model.model.transformer.wte.weight": (302, 32)})
    return {**files, "tokenizer.json": tokenizer.to_str().encode()}


def _npz() -> bytes:
    shapes = {}
    for third in "qkv":
        shapes[f"transformer_h.0.attn.qkv_proj.lora_A_{third}.weight"] = (2, 24)
        shapes[f"transformer_h.0.attn.qkv_proj.lora_B_{third}.weight"] = (24, 2)
    shapes["transformer_h.0.mlp.c_fc.lora_A.weight"] = (2, 24)
    shapes["transformer_h.0.mlp.c_fc.lora_B.weight"] = (96, 2)
    stream = io.BytesIO()
    write_npz(stream, tiny.adapter_arrays(shapes))
    return stream.getvalue()


def _squad() -> bytes:
    paragraphs = [{"context": context, "qas": [
        {"id": f"{i}{j}", "question": question, "answers": [{"text": text, "answer_start": context.index(text)}]}
        for j, (question, text) in enumerate(questions)]} for i, (context, questions) in enumerate(_SQUAD)]
    return _json({"version": "1.1", "data": [{"title": "Towns", "paragraphs": paragraphs}]})


def _run() -> Files:
    rows = [{"step": 0, "val_loss": 4.0}]
    rows += [{"step": step, "train_loss": 4.0 - step / 8, "learning_rate": 1e-4, "tokens": 99} for step in (1, 2, 3, 4)]
    rows.append({"step": 4, "val_loss": None, "f1": 20.0})
    summary = {"ended": "finished", "steps": 4, "seconds": 1.5, "trainable_parameters": 99, "train_loss": 3.5}
    return {"metrics.jsonl": b"".join(_json(row) + b"\n" for row in rows),
            "train_loss.txt": b"3.875\n3.75\n3.625\n3.5\n", "val_loss.txt": b"4.0\nnan\n",
            "run.log": b"2024-01-01 00:00:00 Done\n", "summary.json": _json(summary),
            "config.yaml": yaml.safe_dump(SETTINGS.model_dump(), sort_keys=False).encode()}


def _state() -> TrainingState:
    arrays = {}
    for block in range(2):
        for part, shape in (("A", (2, 24)), ("B", (72, 2))):
            name = f"{TARGET.format(block)}.lora_{part}"
            arrays.update({f"{kind}.{name}": np.ones(shape, np.float32) for kind in ("adapter", "first", "second")})
    progress = {"step": 2, "train_loss": 3.5, "validation_loss": None, "best_loss": None, "best_step": 0,
                "validations_since_best": 0}
    return TrainingState(arrays, {"progress": progress, "settings": SETTINGS.model_dump(), **IDENTITIES, "threads": 1,
                                  "system": {"cpu": "x", "jittor": "1"}})


def with_sum(data: bytes) -> bytes:
    """A checkpoint with the correct SHA-256 in its header, which an attacker can compute too."""
    at = data.find(b'"sha256":"')
    if at < 0 or len(data) < at + 74:
        return data
    zeroed = data[: at + 10] + b"0" * 64 + data[at + 74 :]
    return zeroed[: at + 10] + hashlib.sha256(zeroed).hexdigest().encode() + zeroed[at + 74 :]
