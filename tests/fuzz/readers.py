"""Every reader of untrusted files, with what the program does next with the result.

Each takes the folder of the case. Any exception but `UserError` is a finding.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Callable

import numpy as np

import model_files
import small_run
import tiny
from fuzz.seeds import IDENTITIES, PROMPTS, SETTINGS, TARGET, with_sum
from jittor_lora.cli.generate import read_records
from jittor_lora.data.examples import training_groups
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.evaluation.items import items_of
from jittor_lora.evaluation.loss_logs import read_loss_files, read_run_losses
from jittor_lora.evaluation.metrics import read_metrics
from jittor_lora.evaluation.systems import read_system
from jittor_lora.formats import hub, smollm2
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.formats.adapter_source import open_adapter
from jittor_lora.formats.added_tokens import with_added_tokens
from jittor_lora.formats.base_record import base_of_adapter
from jittor_lora.formats.bases import ResolvedBase, load_base
from jittor_lora.formats.byte_level import gpt2_tokenizer
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_tokenizer import gguf_tokenizer
from jittor_lora.formats.hugging_face import Checkpoint
from jittor_lora.formats.tokenizer import Tokenizer, read_tokenizer
from jittor_lora.formats.training_state import newest_state
from jittor_lora.lora.combination import Combination
from jittor_lora.settings.curve import CurveConfig
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jittor_home
from jittor_lora.tasks.adapter import (
    combine_folders,
    compare,
    find_adapters,
    folder_to_npz,
    in_use,
    loralib_to_folder,
    measure,
    npz_to_folder,
)
from jittor_lora.training.log import RunLog
from needs import is_there

TEXT = "The answer is 42 or 1066.\n\nnaïve café, 北京 🎉 def f(x):\n    return  x ** 2 a<|endoftext|>b" + "a" * 300


def base(folder: Path) -> None:
    _use_base(ResolvedBase("base", folder, "folder", "a base"))


def gguf(folder: Path) -> None:
    _use_base(ResolvedBase("base", folder / "model.gguf", "gguf", "a base"))


def sentence_pieces(folder: Path) -> None:
    _use_tokenizer(gguf_tokenizer(GgufFile(folder / "model.gguf")))


def tokenizer(folder: Path) -> None:
    _use_tokenizer(read_tokenizer(folder))


def adapter(folder: Path) -> None:
    found = read_adapter_folder(folder)
    measure(found)
    in_use(found.settings)


def base_record(folder: Path) -> None:
    base_of_adapter(folder)


def adapters(folder: Path) -> None:
    find_adapters(folder)
    compare(read_adapter_folder(folder / "a"), read_adapter_folder(folder / "b"))
    for how in (Combination("cat"), Combination("ties_svd", density=0.5)):
        combine_folders([folder / "a", folder / "b"], [0.5, 2.0], how, folder / how.method)
    folder_to_npz(folder / "a", folder / "a.npz")


def load_adapter(folder: Path) -> None:
    from jittor_lora.formats.peft import load_adapter
    from jittor_lora.lora.inject import adapters_of

    load_adapter(folder, _network(), "fuzz")
    adapters_of(_network()).delete("fuzz")


def added_tokens(folder: Path) -> None:
    checkpoint, found = _small_base()
    checkpoint, found = with_added_tokens(checkpoint, found, open_adapter(folder))
    for name in checkpoint.tensors:
        assert checkpoint.tensors[name].dtype == np.float32
    _use_tokenizer(found)


def npz(folder: Path) -> None:
    npz_to_folder(folder / "weights.npz", folder / "adapter", "base", 16.0)


def loralib(folder: Path) -> None:
    loralib_to_folder(folder / "model.pt", folder / "adapter", "base", 32.0, None)


def data(folder: Path) -> None:
    path = str(next(folder.iterdir()))
    for purpose in ("prompts", "evaluation", "training"):
        found = load_data(path, purpose=purpose)
        found.subset(2, 1)
        found.references()
        describe_data(found)
        if purpose == "training":
            items_of(found)
            training_groups(found, _gpt2(), Template(), 64)


def conversations(folder: Path) -> None:
    path = str(next(folder.iterdir()))
    for purpose in ("prompts", "evaluation", "training"):
        found = load_data(path, purpose=purpose)
        describe_data(found)
        found.subset(2, 1)
        found.references()
        items_of(found)


def records(folder: Path) -> None:
    read_records(str(folder / "data.jsonl"))


def recipe(folder: Path) -> None:
    RunConfig.resolve(str(folder / "recipe.yaml"))


def curve_recipe(folder: Path) -> None:
    config = CurveConfig.resolve(str(folder / "recipe.yaml"))
    for value in config.values(20):
        config.run(value, "run")


def predictions(folder: Path) -> None:
    read_system("one", folder / "run" / "evaluation" / "adapter" / "predictions.json", PROMPTS)


def metrics(folder: Path) -> None:
    read_metrics(folder / "metrics.json")


def losses(folder: Path) -> None:
    read_loss_files(folder / "train.txt", folder / "val.txt")


def run(folder: Path) -> None:
    read_run_losses(folder)


def log(folder: Path) -> None:
    with RunLog(folder, 8, quiet=True) as made:
        made.truncate_to(2)
        made.message("going on")


def state(folder: Path) -> None:
    """Checkpoints as they are, and with their checksum put right."""
    from jittor_lora.tasks.fingerprints import Sources
    from jittor_lora.tasks.methods import Lora
    from jittor_lora.tasks.resume import SAME_BITS, restore

    adapter, optimizer = _trained()
    sources = Sources([], [], IDENTITIES["base"], IDENTITIES["precision"])
    for fixed in (False, True):
        if fixed:
            for path in folder.iterdir():
                if path.is_file() and path.stat().st_size < 1 << 20:
                    path.write_bytes(with_sum(path.read_bytes()))
        newest_state(folder)
        restore(folder, Lora(None, adapter), optimizer, SETTINGS, sources, dict.fromkeys(SAME_BITS, "here"))


def summary(folder: Path) -> None:
    from jittor_lora.tasks.curve import read_summary

    read_summary(folder / "summary.json")


def hub_folder(folder: Path) -> None:
    try:
        hub._whole(folder)
    except hub.Unavailable as error:
        raise UserError(f"{folder}: {error}") from error


def caches(folder: Path) -> None:
    """Files that this program and Jittor keep in the user's own folders."""
    jittor_home({}, folder)
    model = folder / smollm2.MEMBER.rsplit("/", 1)[1]
    if not model.exists():
        with open(model, "wb") as stream:
            stream.truncate(smollm2.MODEL_BYTES)
    smollm2._stamped(model)


CONVERSATIONS = ("messages", "parts", "split", "sharegpt", "pairs", "alpaca", "csv", "csv_messages",
                 *(["parquet"] if is_there("parquet") else []))
READERS: dict[str, Callable[[Path], None]] = {
    "base": base, "shards": base, "torch_base": base, "old_torch_base": base, "gguf": gguf,
    "sentence_pieces": sentence_pieces, "tokenizer": tokenizer, "vocabulary": tokenizer, "word_pieces": tokenizer,
    "adapter": adapter, "load_adapter": load_adapter,
    "old_adapter": load_adapter, "extras": load_adapter, "added_tokens": added_tokens,
    "base_record": base_record, "adapters": adapters, "npz": npz, "loralib": loralib, "squad": data,
    "jsonl": data, "flat": data, "array": data, "e2e": data, "webnlg": data, "dart": data,
    "v2": data, "cmrc": data, "records": records,
    **dict.fromkeys(CONVERSATIONS, conversations), "recipe": recipe,
    "curve_recipe": curve_recipe, "predictions": predictions, "metrics": metrics,
    "losses": losses, "run": run, "log": log, "state": state, "summary": summary, "hub": hub_folder, "caches": caches,
}


def _use_base(resolved: ResolvedBase) -> None:
    checkpoint, found = load_base(resolved, say=lambda text: None)
    for name in checkpoint.tensors:
        assert checkpoint.tensors[name].dtype == np.float32
    _use_tokenizer(found)


def _use_tokenizer(found: Tokenizer) -> None:
    ids = found.encode(TEXT)
    found.extend(TEXT[:9], found.begin(TEXT[:9]), [TEXT[9:]])
    found.decode(ids)
    for token in ids[:20]:
        found.decode([token])
    found.decode(range(min(found.vocab_size, 400)))


@lru_cache
def _gpt2() -> Tokenizer:
    return Tokenizer(gpt2_tokenizer(), {}, "GPT-2", 50256)


@lru_cache
def _small_base():
    """The model and the tokenizer that `small_run.make_base` writes."""
    checkpoint = Checkpoint(tiny.config(small_run.GPT2), tiny.tensors(small_run.GPT2))
    return checkpoint, Tokenizer(model_files.make_bpe(), {}, "the base", 299)


@lru_cache
def _network():
    from jittor_lora.model.load import build_model

    return build_model(tiny.config(tiny.GPT2), tiny.tensors(tiny.GPT2))


@lru_cache
def _trained():
    """The adapter and optimiser that the checkpoints belong to."""
    from jittor_lora.lora.config import LoraConfig
    from jittor_lora.lora.inject import inject
    from jittor_lora.model.load import build_model
    from jittor_lora.training.optimizer import AdamW

    model = build_model(tiny.config(tiny.GPT2), tiny.tensors(tiny.GPT2))
    made = inject(model, LoraConfig(r=2, target_modules=("c_attn",)))
    assert f"{TARGET.format(1)}.lora_B" in made.parameters()
    return made, AdamW(made.parameters())
