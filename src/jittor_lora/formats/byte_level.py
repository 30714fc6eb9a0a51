"""Byte-level BPE, GPT-2's kind of tokenizer (Radford et al. 2019, section 2.2): every byte has a printable character,
and the vocabulary is the bytes and merges of them, so it covers every text."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Optional

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"

# Printable Latin-1 bytes, in GPT-2's order, map to themselves; the others to characters from U+0100 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
CHARACTERS = {**{byte: chr(byte) for byte in _PRINTABLE}, **{byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}}


class Words(NamedTuple):
    """How a text is split into words, which are then tokenised one by one.

    Attributes:
        pattern: matches a word; None for GPT-2's.
        single_digits: split off each digit first.
        composed: bring the text to Unicode's composed form first (NFC).
        whole_words: a word that is a token is that token, whatever the merges.
    """

    pattern: Optional[str] = None
    single_digits: bool = False
    composed: bool = False
    whole_words: bool = False


_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+")
GPT2 = Words()
SMOLLM = Words(single_digits=True)
LLAMA3 = Words(_PATTERN % "{1,3}", whole_words=True)
QWEN2 = Words(_PATTERN % "", composed=True)


def byte_level_bpe(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], special: Iterable[str] = (),
                   words: Words = GPT2, prefix_space: bool = False) -> Tokenizer:
    """
    Args:
        special: tokens of the vocabulary that no text may produce.
        words: how text is split.
        prefix_space: put a space before the text.

    Raises:
        ValueError: a merge needs a token that the vocabulary lacks (the library would panic).
    """
    merges = list(merges)
    for left, right in merges:
        lacking = [token for token in (left, right, left + right) if token not in vocab]
        if lacking:
            raise ValueError(f"the vocabulary lacks {lacking[0][:40]!r}, which the merge "
                             f"{left[:40]!r} {right[:40]!r} needs")
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=words.pattern is None)]
    if words.pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(words.pattern), behavior="isolated"))
    if words.single_digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer = Tokenizer(models.BPE(dict(vocab), merges, ignore_merges=words.whole_words))
    tokenizer.normalizer = normalizers.NFC() if words.composed else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special if token in vocab])
    return tokenizer


def parse_merges(text: str) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, best first.

    Raises:
        ValueError: a line is not two tokens; the message has its number.
    """
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise ValueError(f"line {number}: expected two tokens; found {line[:40]!r}")
        pairs.append((pair[0], pair[1]))
    return pairs


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's tokenizer of 50,257 tokens, from the merges shipped with this package.

    Its vocabulary follows from them: the bytes, the merged pairs in order, and end of text.
    """
    path = Path(__file__).with_name("gpt2_tokenizer") / "merges.txt"
    merges = parse_merges(path.read_text(encoding="utf-8"))
    tokens = [*CHARACTERS.values(), *(left + right for left, right in merges), END_OF_TEXT]
    return byte_level_bpe({token: index for index, token in enumerate(tokens)}, merges, [END_OF_TEXT])
