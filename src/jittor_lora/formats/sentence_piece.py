"""SentencePiece's BPE, Llama 2's and Mistral's kind of tokenizer (Kudo and Richardson 2018), from pieces with scores.

A text is one word in which spaces are ▁. Of all neighbours that make up a piece, those with the highest score are
joined first; a character that is no piece becomes the pieces of its bytes, <0x00> to <0xFF>. The tokenizers library has
merges in place of scores: every way to make up a piece of two, best pieces first, as transformers converts them too.
"""

from __future__ import annotations

from typing import Iterable, Mapping, Optional, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

SPACE = "▁"
LONGEST_PIECE = 256  # far above SentencePiece's own limit, 16 unless set otherwise
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def sentence_piece_bpe(pieces: Sequence[str], scores: Mapping[str, float], special: Iterable[str] = (),
                       unknown: Optional[str] = None, prefix_space: bool = True) -> Tokenizer:
    """
    Args:
        pieces: all tokens by id, each once.
        scores: of the pieces that may be joined.
        special: tokens that no text may produce.
        unknown: the token of what has none.
        prefix_space: put a space before each text.

    Raises:
        ValueError: some characters would have no token, or a piece is absurdly long.
    """
    vocab = {piece: index for index, piece in enumerate(pieces)}
    lacking = [byte for byte in BYTES if byte not in vocab]
    if lacking and unknown is None:
        raise ValueError(f"expected a token for every byte, or one for what is unknown; {lacking[0]} not found")
    longest = max(scores, key=len, default="")
    if len(longest) > LONGEST_PIECE:
        raise ValueError(f"expected pieces of at most {LONGEST_PIECE} characters; found one of {len(longest):,}")
    model = models.BPE(vocab, _merges(vocab, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    made = Tokenizer(model)
    before = [normalizers.Prepend(SPACE)] if prefix_space else []
    made.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return made


def _merges(vocab: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    found = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, -cut, -len(right), vocab[piece], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
