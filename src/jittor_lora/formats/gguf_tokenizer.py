"""Tokenizers in GGUF files: byte-level BPE, and SentencePiece's BPE with scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jittor_lora.errors import UserError
from jittor_lora.formats.byte_level import GPT2, LLAMA3, QWEN2, SMOLLM, Words, byte_level_bpe, parse_merges
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.sentence_piece import sentence_piece_bpe
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.formats.tokenizer_check import library_errors
from jittor_lora.formats.tokenizer_steps import apply_config

_INSTEAD = "Use the model's Hugging Face directory."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # values of tokenizer.ggml.token_type


class _Kind(NamedTuple):
    """A value of tokenizer.ggml.pre: how words are split, and whether texts begin with bos_token by default."""

    words: Words
    begins: bool = False


KINDS = {
    "gpt-2": _Kind(GPT2),
    "gpt2": _Kind(GPT2),
    "default": _Kind(GPT2),
    "smollm": _Kind(SMOLLM),
    "llama-bpe": _Kind(LLAMA3, begins=True),
    "llama3": _Kind(LLAMA3, begins=True),
    "llama-v3": _Kind(LLAMA3, begins=True),
    "qwen2": _Kind(QWEN2),
}


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer in a GGUF file, with the ids of the model's tokenizer.json.

    Raises:
        UserError: another kind of tokenizer, or metadata that are missing or inconsistent.
    """
    kind, pre = (file.metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    pre = "default" if pre is None else str(pre)
    if kind != "llama" and (kind != "gpt2" or pre not in KINDS):
        raise UserError(f"{file.path}: tokenizer.ggml.model and .pre: expected llama, or gpt2 with one of "
                        f"{', '.join(KINDS)}; found {str(kind)[:40]} with {pre[:40]}. {_INSTEAD}")
    metadata = _Metadata(file)
    if kind == "llama":
        backend, begins = _sentence_pieces(metadata), True
    else:
        backend, begins = _byte_level(metadata, KINDS[pre].words), KINDS[pre].begins
    config = _config(metadata, begins)
    apply_config(backend, config, str(file.path))
    ends = [metadata.id(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    return Tokenizer(backend, config, str(file.path), ends[0], (token for token in ends if token is not None))


def _byte_level(metadata: _Metadata, words: Words) -> tokenizers.Tokenizer:
    if metadata["add_space_prefix"] is True:
        raise UserError(f"{metadata.path}: tokenizer.ggml.add_space_prefix: expected false, because programs disagree "
                        f"on its meaning for this kind of tokenizer; found true. {_INSTEAD}")
    try:
        merges = parse_merges("\n".join(metadata.texts("merges")))
    except ValueError as error:
        raise UserError(f"{metadata.path}: tokenizer.ggml.merges: {error}.") from error
    vocab = {token: index for index, token in enumerate(metadata.tokens)}
    with library_errors(f"{metadata.path}: tokenizer.ggml"):
        backend = byte_level_bpe(vocab, merges, metadata.of_type(CONTROL), words)
        backend.add_tokens([tokenizers.AddedToken(token, normalized=False)
                            for token in metadata.of_type(USER_DEFINED)])
    return backend


def _sentence_pieces(metadata: _Metadata) -> tokenizers.Tokenizer:
    if metadata["remove_extra_whitespaces"] is True or metadata["precompiled_charsmap"]:
        raise UserError(f"{metadata.path}: tokenizer.ggml.remove_extra_whitespaces, .precompiled_charsmap: expected "
                        f"neither; texts that are changed first are not supported. {_INSTEAD}")
    scores, count = metadata.file.metadata.get("tokenizer.ggml.scores"), len(metadata.tokens)
    if not isinstance(scores, np.ndarray) or len(scores) != count or not np.isfinite(scores).all():
        raise UserError(f"{metadata.path}: tokenizer.ggml.scores: expected {count} finite numbers.")
    by_token = dict(zip(metadata.tokens, scores.tolist()))
    joined = {token: by_token[token] for token in metadata.of_type(NORMAL)}
    unknown = metadata.id("unknown_token_id")
    with library_errors(f"{metadata.path}: tokenizer.ggml"):
        backend = sentence_piece_bpe(metadata.tokens, joined, metadata.of_type(CONTROL, UNKNOWN),
                                     None if unknown is None else metadata.tokens[unknown],
                                     metadata["add_space_prefix"] is not False)
        backend.add_tokens([tokenizers.AddedToken(token, normalized=False)
                            for token in metadata.of_type(USER_DEFINED)])
    return backend


def _config(metadata: _Metadata, begins: bool) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = metadata.id(f"{key}_token_id")
        if token is not None:
            config[f"{name}_token"] = metadata.tokens[token]
    if isinstance(metadata.file.metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = metadata.file.metadata["tokenizer.chat_template"]
    config.update((key, metadata[key]) for key in ("add_bos_token", "add_eos_token") if type(metadata[key]) is bool)
    if begins and "bos_token" in config:
        config.setdefault("add_bos_token", True)
    return config


class _Metadata:
    """The values under tokenizer.ggml.

    Attributes:
        tokens: by id, each once.
    """

    def __init__(self, file: GgufFile):
        self.file, self.path = file, file.path
        self.tokens = self.texts("tokens")
        repeated = len(self.tokens) - len(set(self.tokens))
        if repeated:
            raise UserError(f"{self.path}: tokenizer.ggml.tokens: expected no token twice; found {repeated} repeated.")
        self._types = self["token_type"]
        if not isinstance(self._types, list) or len(self._types) != len(self.tokens):
            raise UserError(f"{self.path}: tokenizer.ggml.token_type: expected {len(self.tokens)} numbers.")

    def __getitem__(self, name: str) -> Any:
        value = self.file.metadata.get(f"tokenizer.ggml.{name}")
        return value.tolist() if isinstance(value, np.ndarray) else value

    def texts(self, name: str) -> list[str]:
        value = self[name]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{self.path}: tokenizer.ggml.{name}: expected a list of texts; "
                            f"found {type(value).__name__}.")
        return value

    def of_type(self, *types: int) -> list[str]:
        """The tokens of these types, by id."""
        return [token for token, kind in zip(self.tokens, self._types) if kind in types]

    def id(self, name: str) -> int | None:
        value = self[name]
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise UserError(f"{self.path}: tokenizer.ggml.{name}: expected an id below {len(self.tokens)}; "
                            f"found {str(value)[:40]}.")
        return value
