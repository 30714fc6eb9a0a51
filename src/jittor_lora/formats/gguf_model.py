"""A whole model as a GGUF file: which tensors it has, in which types, and its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.formats.gguf import StoredForm, stored_form
from jittor_lora.formats.gguf_config import ROPE_FACTORS
from jittor_lora.formats.gguf_file import GgufFile, GgufTensor
from jittor_lora.formats.gguf_metadata import extra_tensors, model_metadata
from jittor_lora.formats.gguf_types import FILE_TYPES, QUANTISED, encode, name_of, type_of
from jittor_lora.formats.gguf_vocabulary import token_types, vocabulary_metadata
from jittor_lora.formats.gguf_writer import TensorPlan, Typed
from jittor_lora.formats.hugging_face import shorten
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.model.config import ModelConfig, tensor_shapes

KEPT, REQUANTISED = "kept", "requantised"  # of a GGUF base: what no adapter changed stays, byte for byte
OUT_TYPES = (*FILE_TYPES, KEPT, REQUANTISED)
_REWRITTEN = ("general.architecture", "general.alignment", "split.")  # not copied
_QUANTISATION_VERSION = 2  # of ggml's blocks


def plan_tensors(config: ModelConfig, tensors: Mapping[str, np.ndarray], out_type: str, file: GgufFile | None,
                 is_merged: Callable[[str], bool]) -> list[TensorPlan]:
    """
    Args:
        config: from `as_llama_cpp_has_it`.
        tensors: of `tensor_shapes(config)`, in Hugging Face's form; each is read when it is written.
        out_type: one of `OUT_TYPES`.
        file: the base, if it is a GGUF file.
        is_merged: whether an adapter changed a tensor.

    Raises:
        UserError: the type needs a GGUF base, or some tensors have types in which they cannot be quantised again.
    """
    if file is None and out_type in (KEPT, REQUANTISED):
        raise UserError(f"--outtype {out_type}: expected a GGUF file as the base, whose types are kept; found a "
                        f"Hugging Face model. Use one of {', '.join(FILE_TYPES)}.")
    plans, stays = [], out_type in (KEPT, REQUANTISED)
    entries: dict[str, GgufTensor] = file.entries if file else {}
    lost = []
    for name, shape in tensor_shapes(config).items():
        form = stored_form(name, config)
        shape = form.shape(shape)
        entry = entries.get(form.name)
        if stays and entry is not None and entry.shape == shape and not is_merged(name):
            plans.append(_copied(file, form.name))
            continue
        wanted = out_type.upper()
        if stays:  # the head of a model that had none is stored as its embedding
            before = name_of((entry or entries["token_embd.weight"]).kind)
            wanted = "F16" if out_type == KEPT and before != "F32" else before
            if wanted not in (*QUANTISED, "F32", "F16", "BF16"):
                lost.append(f"{form.name}: {before}")
                continue
        plans.append(_made(name, form, shape, type_of(form.name, shape, wanted), tensors))
    if lost:
        raise UserError(f"--outtype {REQUANTISED}: expected tensors of the types that the gguf library can quantise, "
                        f"{', '.join(QUANTISED)}; found:\n  " + shorten(lost, 10, "\n  ") + f"\nUse --outtype {KEPT}, "
                        "or f16 and llama.cpp's llama-quantize.")
    planned = {plan.name for plan in plans}
    if file is None:
        plans += [TensorPlan(name, array.shape, "F32", lambda array=array: [array.tobytes()])
                  for name, array in extra_tensors(config).items()]
    else:
        plans += [_copied(file, name) for name in entries if name not in planned and (stays or name == ROPE_FACTORS)]
    return plans


def metadata_of(config: ModelConfig, tokenizer: Tokenizer, out_type: str, file: GgufFile | None, name: str,
                chat_template: str | None) -> dict[str, Any]:
    """
    Args:
        config: from `as_llama_cpp_has_it`.
        file: the base, if it is a GGUF file, whose metadata are kept.
        name: of the base.
        chat_template: a Jinja program; None for none.

    Raises:
        UserError: as `vocabulary_metadata`.
    """
    if file is None:
        found = {"general.type": "model", "general.name": Path(name).name or name, **model_metadata(config),
                 **vocabulary_metadata(tokenizer, config.vocab_size)}
    else:
        found = dict(_copied_metadata(file))
        if len(file.metadata["tokenizer.ggml.tokens"]) < config.vocab_size:
            found.update(_longer(file, tokenizer, config.vocab_size))
    if out_type in FILE_TYPES:
        found["general.file_type"] = FILE_TYPES[out_type]
    found["general.quantization_version"] = _QUANTISATION_VERSION
    found.pop("tokenizer.chat_template", None)
    return found if chat_template is None else {**found, "tokenizer.chat_template": chat_template}


def _copied(file: GgufFile, name: str) -> TensorPlan:
    entry = file.entries[name]
    return TensorPlan(name, entry.shape, name_of(entry.kind), lambda: [file.raw(name).data])


def _made(name: str, form: StoredForm, shape: tuple[int, ...], kind: str,
          tensors: Mapping[str, np.ndarray]) -> TensorPlan:
    return TensorPlan(form.name, shape, kind, lambda: encode(name, form.tensor(tensors[name]), kind))


def _copied_metadata(file: GgufFile) -> Iterator[tuple[str, Typed]]:
    for key, (kind, item) in file.metadata_types().items():
        if not key.startswith(_REWRITTEN):
            yield key, Typed(file.metadata[key], kind, item)


def _longer(file: GgufFile, tokenizer: Tokenizer, rows: int) -> Iterator[tuple[str, Any]]:
    """The lists of tokens with those that an adapter added."""
    count = len(file.metadata["tokenizer.ggml.tokens"])
    tokens, types = token_types(tokenizer, json.loads(tokenizer.serialized()), rows)
    new = {"tokens": tokens[count:], "token_type": types[count:], "scores": [0.0] * (rows - count)}
    declared = file.metadata_types()
    for name, values in new.items():
        key = f"tokenizer.ggml.{name}"
        if key in file.metadata:
            yield key, Typed([*file.metadata[key], *values], *declared[key])
