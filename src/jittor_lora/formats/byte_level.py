"""Byte-level BPE, GPT-2's kind of tokenizer (Radford et al. 2019, section 2.2): every byte has a printable character,
and the vocabulary is the bytes and what is merged of them, so no text is outside it."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"

# Printable Latin-1 bytes, in GPT-2's order, stand for themselves; the others have characters from U+0100 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
CHARACTERS = {**{byte: chr(byte) for byte in _PRINTABLE}, **{byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}}


def byte_level_bpe(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], special: Iterable[str] = (),
                   single_digits: bool = False, prefix_space: bool = False) -> Tokenizer:
    """A tokenizer with GPT-2's way of cutting text into words.

    Args:
        special: tokens of the vocabulary that no text may produce.
        single_digits: cut each digit off first (SmolLM).
        prefix_space: put a space before the text.

    Raises:
        ValueError: a merge needs a token that the vocabulary lacks (on which the library would panic).
    """
    merges = list(merges)
    for left, right in merges:
        lacking = [token for token in (left, right, left + right) if token not in vocab]
        if lacking:
            raise ValueError(f"the vocabulary lacks {lacking[0][:40]!r}, which the merge "
                             f"{left[:40]!r} {right[:40]!r} needs")
    words = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = Tokenizer(models.BPE(dict(vocab), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if single_digits else words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special if token in vocab])
    return tokenizer


def parse_merges(text: str) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, best first.

    Raises:
        ValueError: a line is not two tokens; it is named by its number.
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

    Its vocabulary follows from them: the bytes, the merged pairs in their order, the end of text.
    """
    path = Path(__file__).with_name("gpt2_tokenizer") / "merges.txt"
    merges = parse_merges(path.read_text(encoding="utf-8"))
    tokens = [*CHARACTERS.values(), *(left + right for left, right in merges), END_OF_TEXT]
    return byte_level_bpe({token: index for index, token in enumerate(tokens)}, merges, [END_OF_TEXT])
