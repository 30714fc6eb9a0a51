"""A tokenizer's settings for whole texts: tokens around a text, a space before it, pieces that encode independently.

Most are in tokenizer.json, which the tokenizers library reads; some are in tokenizer_config.json. The latter are
applied if transformers applies them, reported if it ignores them, and refused if its versions disagree.
"""

from __future__ import annotations

import json
import re
from typing import Any, Mapping

import tokenizers
from tokenizers import pre_tokenizers, processors

from jittor_lora.errors import UserError
from jittor_lora.formats import word_piece

# Defaults of these transformers classes for settings absent from tokenizer_config.json. These classes apply
# add_prefix_space; others leave it to tokenizer.json.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "GPT2Tokenizer": {"add_prefix_space": False, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "LlamaTokenizer": {"add_prefix_space": True, "bos_token": "<s>", "eos_token": "</s>"},
}
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ENDS = ("add_bos_token", "add_eos_token")
_ID = re.compile(r"[0-9]{1,9}")


def spelling(token: Any) -> str | None:
    """The text of a token in a configuration: either itself, or the `content` of a dictionary."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The spellings of special tokens by name, {"eos_token": "</s>"}; only of those that the tokenizer has."""
    named = {**_DEFAULTS.get(_class(config), {}), **config}
    found = {name: spelling(named.get(name)) for name in SPECIAL_NAMES}
    return {name: text for name, text in found.items() if text is not None}


def apply_config(backend: tokenizers.Tokenizer, config: Mapping[str, Any], origin: str, family: str | None = None,
                 whole: bool = False) -> list[str]:
    """Apply the settings of tokenizer_config.json that concern texts.

    Args:
        config: its content.
        origin: of the tokenizer, for messages.
        family: of the model; a GPT-2 model uses GPT2Tokenizer if the configuration names no class.
        whole: whether the tokens around a text are those of `backend`, as with tokenizer.json and vocab.txt.

    Returns: sentences on settings that transformers ignores.

    Raises:
        UserError: a setting cannot be applied, or only some versions of transformers apply it.
    """
    kind = _class(config) or ("GPT2Tokenizer" if family == "gpt2" else None)
    defaults = _DEFAULTS.get(kind, {})
    _add_tokens(backend, config, origin)
    _apply_prefix_space(backend, config, origin, kind, defaults)
    if kind == "BertTokenizer" and type(backend.normalizer).__name__ == "BertNormalizer":
        backend.normalizer = word_piece.normalizer(config, origin)  # transformers heeds no other
    settings = {**defaults, **config}
    if not whole:
        _apply_ends(backend, settings, origin)
        return []
    ignored = _ends_ignored(backend, settings)
    if ignored and kind == "LlamaTokenizer":
        raise UserError(f"{origin}: {' and '.join(ignored)}. Versions of transformers differ on which applies. Load "
                        "the tokenizer with the version used in training, and save it again.")
    return [f"{origin}: {each}. tokenizer.json applies, as in transformers." for each in ignored]


def around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """(ids before, ids after) that the post-processor puts around a text."""
    before: list[int] = []
    after: list[int] = []
    for step in _flat(_state(backend.post_processor), "processors"):
        opening, closing = _around(step)
        before, after = opening + before, after + closing
    return before, after


def cuts_before_space(backend: tokenizers.Tokenizer) -> bool:
    """Whether a text cut where a space follows a non-space has the tokens of its parts.

    This holds for byte-level BPE with GPT-2's words: no word spans a non-space and a space after it, and the start of
    a text is treated like any other part.
    """
    if backend.normalizer is not None or type(backend.model).__name__ != "BPE":
        return False
    *first, last = _flat(_state(backend.pre_tokenizer), "pretokenizers") or [{}]
    words = last.get("type") == "ByteLevel" and last.get("use_regex", True) and not last.get("add_prefix_space")
    return words and all(step.get("type") == "Digits" for step in first) and not any(
        token.lstrip or token.rstrip or any(map(str.isspace, token.content))
        for token in backend.get_added_tokens_decoder().values())


def _class(config: Mapping[str, Any]) -> str | None:
    named = config.get("tokenizer_class")
    return named.removesuffix("Fast") if isinstance(named, str) else None


def _state(step: Any) -> dict[str, Any]:
    return {} if step is None else json.loads(step.__getstate__())


def _flat(state: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A step, or the steps of a sequence in order."""
    if state.get("type") != "Sequence":
        return [state] if state else []
    return [found for step in state.get(key, ()) for found in _flat(step, key)]


def _around(step: dict[str, Any]) -> tuple[list[int], list[int]]:
    if step.get("type") in ("BertProcessing", "RobertaProcessing"):
        return [step["cls"][1]], [step["sep"][1]]
    found: tuple[list[int], list[int]] = [], []
    passed = 0
    for piece in step.get("single", ()) if step.get("type") == "TemplateProcessing" else ():
        if "Sequence" in piece:
            passed = 1
        else:
            found[passed].extend(step["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return found


def _add_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], origin: str) -> None:
    """Adds tokens that tokenizer_config.json lists and tokenizer.json lacks, as transformers does."""
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict) or not all(isinstance(token, dict) for token in listed.values()):
        return
    entries = [(int(index), token) for index, token in listed.items() if _ID.fullmatch(index)]
    for index, token in sorted(entries, key=lambda entry: entry[0]):
        text = spelling(token)
        if text and backend.token_to_id(text) is None:
            flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
                     if type(token.get(name)) is bool}
            backend.add_tokens([tokenizers.AddedToken(text, **flags)])
        if text and backend.token_to_id(text) != index:
            raise UserError(f"{origin}: token {text[:40]!r} has id {backend.token_to_id(text)}, and {index} in "
                            "tokenizer_config.json (added_tokens_decoder). Fetch both files of the same model.")


def _apply_prefix_space(backend: tokenizers.Tokenizer, config: Mapping[str, Any], origin: str, kind: str | None,
                        defaults: Mapping[str, Any]) -> None:
    steps = _flat(_state(backend.pre_tokenizer), "pretokenizers")
    bytes_first, bytes_last = (bool(steps) and steps[i].get("type") == "ByteLevel" for i in (0, -1))
    given = config.get("add_prefix_space")
    wanted = given if type(given) is bool else defaults.get("add_prefix_space")
    if wanted is None or wanted == _prefixes(backend):
        return
    if kind == "GPT2Tokenizer" and bytes_first and len(steps) == 1:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=wanted,
                                                         use_regex=steps[0].get("use_regex", True))
        return
    # For these, tokenizer.json decides in every version: transformers uses a byte-level Llama tokenizer unchanged.
    if (kind == "LlamaTokenizer" and bytes_last and given is None) or (kind not in _DEFAULTS and not bytes_first):
        return
    raise UserError(
        f"{origin}: a space {'is' if _prefixes(backend) else 'is not'} put before a text, but tokenizer_config.json "
        + (f"says add_prefix_space: {str(given).lower()}" if type(given) is bool else f"names {kind}, which says "
           f"add_prefix_space: {str(wanted).lower()}")
        + ". Versions of transformers differ on which applies. Write the setting used in training into both: load the "
          "tokenizer with transformers, compare tokenizer('a'), and save it again.")


def _prefixes(backend: tokenizers.Tokenizer) -> bool:
    """Whether a space is put before each text."""
    return any(step.get("type") == "Prepend" for step in _flat(_state(backend.normalizer), "normalizers")) or any(
        step.get("add_prefix_space", False) if step.get("type") == "ByteLevel"
        else step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never"
        for step in _flat(_state(backend.pre_tokenizer), "pretokenizers"))


def _apply_ends(backend: tokenizers.Tokenizer, config: Mapping[str, Any], origin: str) -> None:
    """Applies `add_bos_token` and `add_eos_token`, which transformers reads if there is no tokenizer.json."""
    tokens = {}
    for key in _ENDS:
        if config.get(key):
            name = key[4:]
            text = spelling(config.get(name))
            if text is None or backend.token_to_id(text) is None:
                found = "it names none" if text is None else f"the vocabulary lacks {text[:40]!r}"
                raise UserError(f"{origin}: tokenizer_config.json says {key}: true; expected a {name} in the "
                                f"vocabulary, but {found}. Name it there, or set {key} to false.")
            tokens[name] = text
    if not tokens:
        return
    single = [*([tokens["bos_token"]] if "bos_token" in tokens else []), "$A",
              *([tokens["eos_token"]] if "eos_token" in tokens else [])]
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(text, backend.token_to_id(text)) for text in dict.fromkeys(tokens.values())])


def _ends_ignored(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> list[str]:
    """Sentences on `add_bos_token` and `add_eos_token` where tokenizer.json does otherwise."""
    found = []
    for key, ids, where in zip(_ENDS, around(backend), ("before", "after")):
        text = spelling(config.get(key[4:]))
        added = text is not None and backend.token_to_id(text) in ids
        if type(config.get(key)) is bool and config[key] != added:
            found.append(f"tokenizer_config.json says {key}: {str(config[key]).lower()}, but tokenizer.json puts "
                         f"{'' if added else 'no '}{key[4:]} {where} a text")
    return found
