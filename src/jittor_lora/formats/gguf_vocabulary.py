"""The tokenizer of a Hugging Face directory for a GGUF file: byte-level BPE with words that llama.cpp knows by a name.

llama.cpp has the expression that splits a text into words in its code, by the name in `tokenizer.ggml.pre`. Its
conversion recognises a tokenizer by a hash of its ids for one text; here its steps are compared with those that make up
each name, so that a vocabulary of one's own is recognised too.
"""

from __future__ import annotations

import json
from typing import Any, Iterator

from jittor_lora.errors import UserError
from jittor_lora.formats.byte_level import CHARACTERS, Words, byte_level_bpe
from jittor_lora.formats.gguf_tokenizer import CONTROL, KINDS, NORMAL, UNUSED, USER_DEFINED
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.formats.tokenizer_steps import named_tokens

_NAMES = ("gpt-2", "smollm", "llama-bpe", "qwen2")  # of several names for the same steps the one that is written
_IGNORED = ("trim_offsets",)  # concerns the places of tokens in a text, not the tokens
_FLAGS = ("lstrip", "rstrip", "single_word")
_PLAIN = {"dropout": (None, 0.0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, ""),
          "byte_fallback": (False, None)}  # of the model: what llama.cpp's algorithm does
_KEYS = {"bos_token": "bos", "unk_token": "unknown", "pad_token": "padding"}


def vocabulary_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """
    Args:
        rows: of the model's embedding, as many as llama.cpp needs tokens.

    Raises:
        UserError: llama.cpp cannot tokenize as this tokenizer does; all reasons are listed.
    """
    content = json.loads(tokenizer.serialized())
    problems = list(_problems(tokenizer, content))
    if problems:
        raise UserError(f"{tokenizer.origin}: llama.cpp cannot tokenize as this tokenizer does:\n  "
                        + "\n  ".join(problems) + "\nWrite the folder for its converter instead (--format gguf-ready), "
                        "or use the model's own GGUF file as the base.")
    tokens, types = token_types(tokenizer, content, rows)
    ids = {key: tokenizer.vocabulary.get(text) for name, key in _KEYS.items()
           for text in [named_tokens(tokenizer.config).get(name)] if text is not None}
    ids["eos"] = tokenizer.eos_id
    ids.update(zip(("eot", "eom"), sorted(tokenizer.end_ids - {tokenizer.eos_id})))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre(content),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [pair if isinstance(pair, str) else " ".join(pair)
                                  for pair in content["model"]["merges"]],
        **{f"tokenizer.ggml.{key}_token_id": index for key, index in ids.items() if index is not None and index < rows},
        "tokenizer.ggml.add_bos_token": bool(tokenizer.opening),
        "tokenizer.ggml.add_eos_token": False,
    }


def token_types(tokenizer: Tokenizer, content: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The tokens by id, one for each row, and llama.cpp's types of them."""
    by_id = {index: token for token, index in tokenizer.vocabulary.items()}
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in content["added_tokens"]}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(rows)]
    return tokens, [added.get(index, NORMAL) if index in by_id else UNUSED for index in range(rows)]


def _problems(tokenizer: Tokenizer, content: dict[str, Any]) -> Iterator[str]:
    if tokenizer.algorithm != "BPE" or (content["decoder"] or {}).get("type") != "ByteLevel":
        yield f"tokenizer: expected byte-level BPE, found {_described(tokenizer, content)}"
        return
    for name, plain in _PLAIN.items():
        if content["model"].get(name) not in plain:
            yield f"model.{name}: expected none, found {str(content['model'][name])[:40]}"
    lacking = sum(character not in content["model"]["vocab"] for character in CHARACTERS.values())
    if lacking and content["model"].get("unk_token") is not None:  # without one, such bytes are dropped by both
        yield ("model.unk_token: expected none, or a token for each of 256 bytes; found "
               f"{content['model']['unk_token']!r:.40}, and no token for {lacking} of them")
    if _pre(content) is None:
        yield f"pre_tokenizer, normalizer: expected the steps of one of {', '.join(_NAMES)}, found others"
    bos = tokenizer.vocabulary.get(named_tokens(tokenizer.config).get("bos_token", ""))
    if tokenizer.opening not in ([], [bos]):
        yield f"post_processor: expected bos_token or nothing before a text, found tokens {tokenizer.opening}"
    flagged = [token["content"] for token in content["added_tokens"] if any(token[flag] for flag in _FLAGS)]
    if flagged:
        yield (f"added_tokens: expected none that takes in spaces or whole words ({', '.join(_FLAGS)}), found "
               f"{', '.join(map(repr, flagged[:5]))}")


def _pre(content: dict[str, Any]) -> str | None:
    """llama.cpp's name of the steps before the merges."""
    steps = _comparable(content)
    return next((name for name in _NAMES if _comparable(_made(KINDS[name].words)) == steps), None)


def _made(words: Words) -> dict[str, Any]:
    return json.loads(byte_level_bpe({}, (), words=words).to_str())


def _comparable(content: dict[str, Any]) -> Any:
    steps = content["pre_tokenizer"] or {}
    return (_without(content["normalizer"]), _without(steps.get("pretokenizers", [steps])),
            bool(content["model"].get("ignore_merges")))


def _without(value: Any) -> Any:
    if isinstance(value, list):
        return [_without(item) for item in value]
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in _IGNORED}
    return value


def _described(tokenizer: Tokenizer, content: dict[str, Any]) -> str:
    if content["model"].get("byte_fallback"):
        return "SentencePiece's, of which tokenizer.json has the merges, and llama.cpp needs the scores of the pieces"
    return tokenizer.algorithm
