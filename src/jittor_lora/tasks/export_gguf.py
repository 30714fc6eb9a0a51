"""GGUF files of a model with its adapter merged in, and of an adapter alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np

from jittor_lora.data.layout import Layout
from jittor_lora.data.prompting import Prompting
from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.atomic import atomic_folder, atomic_write
from jittor_lora.formats.adapter_export import factors_of, more_than_low_rank
from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.formats.gguf import gguf_tensors
from jittor_lora.formats.gguf_adapter import write_gguf_adapter
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_metadata import as_llama_cpp_has_it, computed_otherwise
from jittor_lora.formats.gguf_model import KEPT, metadata_of, plan_tensors
from jittor_lora.formats.gguf_writer import write_gguf
from jittor_lora.formats.ollama import FILE_NAME, modelfile
from jittor_lora.lora.adapter import Version
from jittor_lora.lora.embedding import EmbeddingUpdate
from jittor_lora.lora.merge import MergedTensors
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.load import build_model
from jittor_lora.session import Session, load
from jittor_lora.system.runtime import jt
from jittor_lora.tasks.merge import merged_checkpoint

_MODEL, _BASE = "model.gguf", "base.gguf"
_PROBE_TEXT = ("The bridge over the Neva was opened in 1850 and has a length of 331 metres. Who designed it? It was "
               "designed by Stanisław Kierbedź. 这座桥于1850年通车，长331米。")
_PROBE_TOKENS = 128


class Change(NamedTuple):
    """What rounding weights to a file's types changes in the logits of a probe text.

    Attributes:
        largest, mean: absolute difference of a logit.
        same, count: tokens after which the likeliest one is the same, of how many.
    """

    largest: float
    mean: float
    same: int
    count: int

    def __str__(self) -> str:
        return (f"rounding moves a logit by {self.largest:.2e} at most and {self.mean:.2e} on average; the likeliest "
                f"token stays the same at {self.same} of {self.count} positions")


def export_gguf(form: str, base: str, adapter: Path | AdapterSource | None, output: Path, out_type: str | None = None,
                ollama: bool = False, tolerance: float = 1e-3, base_precision: str = "auto") -> list[str]:
    """Write a GGUF file.

    Args:
        form: "gguf", the whole model, or "gguf-adapter", the adapter alone.
        output: the file, or with `ollama` the folder for it and a Modelfile.
        out_type: of a whole model, one of `OUT_TYPES`; by default a GGUF base keeps its types, unless it is in another
            `base_precision`.
        tolerance: largest allowed difference between a logit of the merged model and of the base with the adapter.

    Returns: sentences on what was written.

    Raises:
        UserError: as `export_model` and `export_adapter`; nothing is written then.
    """
    session = load(base, adapter, base_precision=base_precision)
    as_in_file = session.base.kind == "gguf" and base_precision in ("auto", "fp32")
    out_type = out_type or (KEPT if as_in_file else "f16")
    if not ollama:
        return _write(form, session, output, out_type, tolerance)
    with atomic_folder(output) as folder:
        name, model, own = ("adapter.gguf", _BASE, _BASE) if form == "gguf-adapter" else (_MODEL, _MODEL, None)
        lines = _write(form, session, folder / name, out_type, tolerance)
        if own is not None and as_in_file:
            model = str(session.base.path.resolve())
        elif own is not None:
            with session.adapters_off():
                export_model(session, folder / own, out_type)
        text = modelfile(model if Path(model).is_absolute() else f"./{model}", f"./{name}" if own else None,
                         _prompting(session), session.tokenizer, session.model.config.max_positions)
        with atomic_write(folder / FILE_NAME) as stream:
            stream.write(text)
    if session.adapter is not None and not _is_prompting_known(session):
        lines.append(f"{output / FILE_NAME}: the adapter does not say how its training put examples into texts; the "
                     "template is the base's.")
    return [line.replace(str(folder), str(output)) for line in lines] + [
        f"{output / FILE_NAME}: for Ollama; its first lines say how to use it."]


def _is_prompting_known(session: Session) -> bool:
    return session.adapter is not None and session.adapter.name in session.promptings


def _prompting(session: Session) -> Prompting:
    """That of training; if it is not known, the base's chat template, if there is one."""
    prompting = session.prompting
    if _is_prompting_known(session):
        return prompting
    return replace(prompting, conversations=prompting.chat is not None)


def _write(form: str, session: Session, path: Path, out_type: str, tolerance: float) -> list[str]:
    if form == "gguf-adapter":
        export_adapter(session, path)
        return [f"{path}: exported."]
    merged = session.check_merge(tolerance) if session.adapter is not None else None
    export_model(session, path, out_type)
    lines = [f"{path}: exported as {out_type}" + ("." if merged is None else
                                                  f"; largest logit difference of merging {merged:.2e}.")]
    rounds = out_type != "f32" and (merged is not None or out_type != KEPT)
    return [*lines, f"Against float32, {change(session, path)}."] if rounds else lines


def export_model(session: Session, path: Path, out_type: str) -> None:
    """Write the base, with the active adapter merged in in float32, as a GGUF file.

    Args:
        out_type: one of `OUT_TYPES`.

    Raises:
        UserError: llama.cpp does not compute this model or tokenize as its tokenizer does, or the file cannot be
            written in this type; there is then no file.
    """
    checkpoint = merged_checkpoint(session)
    config, tensors = as_llama_cpp_has_it(checkpoint.config), checkpoint.tensors
    _check(config)
    file = GgufFile(session.base.path) if session.base.kind == "gguf" else None
    chat = session.prompting.chat
    metadata = metadata_of(config, session.tokenizer, out_type, file, session.base.name, chat.source if chat else None)
    assert isinstance(tensors, MergedTensors)
    plans = plan_tensors(config, tensors, out_type, file, tensors.is_merged)
    with atomic_write(path, "wb") as stream:
        write_gguf(stream, config.family, metadata, plans)


def export_adapter(session: Session, path: Path) -> None:
    """Write the active adapter as a GGUF file.

    Raises:
        UserError: llama.cpp does not compute its base as it is computed here, or has no place for parts of the adapter;
            all are listed. Or the file cannot be written.
    """
    _check(session.model.config)
    versions, tied = session.adapter.versions, session.model.config.tied_head
    problems = [f"{name}: {problem}" for name, version in versions.items()
                for problem in _homeless(name, version, tied)]
    if problems:
        raise UserError("llama.cpp's adapters cannot hold all of this one:\n  " + "\n  ".join(some_of_each(problems))
                        + "\nMerge it into the model instead (--format gguf).")
    embeddings = [name for name, version in versions.items() if isinstance(version, EmbeddingUpdate)]
    write_gguf_adapter(path, session.model.config, {name: factors_of(version) for name, version in versions.items()},
                       embeddings)


def _check(config: ModelConfig) -> None:
    problems = list(computed_otherwise(config))
    if problems:
        raise UserError("The model cannot be exported as GGUF:\n  " + "\n  ".join(problems))


def change(session: Session, path: Path) -> Change:
    """The written file, read back, against the base with the active adapter in float32."""
    config = session.model.config
    tokens = session.tokenizer.begin(_PROBE_TEXT)[: min(_PROBE_TOKENS, config.max_positions)]
    exact = _logits(session.model, tokens)
    written = as_llama_cpp_has_it(merged_checkpoint(session).config)
    rounded = _logits(build_model(written, gguf_tensors(GgufFile(path), written)), tokens)
    difference = np.abs(rounded - exact)
    same = int((rounded.argmax(1) == exact.argmax(1)).sum())
    return Change(float(difference.max()), float(difference.mean()), same, len(tokens))


def _logits(model: CausalLM, tokens: list[int]) -> np.ndarray:
    """(N, V)"""
    count = len(tokens)
    with jt.no_grad():
        hidden = model.hidden(np.array(tokens, np.int32), np.arange(count, dtype=np.int32), Layout.plain(count))
        return model.logits(hidden).numpy()


def _homeless(name: str, version: Version, tied: bool) -> Iterator[str]:
    """What llama.cpp's adapters have no place for."""
    yield from more_than_low_rank(version)
    if getattr(version, "magnitude", None) is not None:
        yield "DoRA's magnitudes"
    if tied and (name == OUTPUT_HEAD or isinstance(version, EmbeddingUpdate)):
        yield "the head is the embedding, and llama.cpp cannot adapt one of the two alone"
