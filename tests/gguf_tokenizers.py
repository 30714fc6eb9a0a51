"""Tokenizers in GGUF files, and the same ones as tokenizer.json has them."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jittor_lora.formats.gguf_file import GgufFile
from model_files import TEXTS as CORPUS

_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
BEGIN, END, PAD, CALL = "<|begin|>", "<|end|>", "<|pad|>", "<call>"
HARD = [*CORPUS, "", " ", "don't WE'LL I'M it's", "1066 12345678 3.14 ١٢٣ ²", "  a   b\n\n\n  c \t\r\n d",
        "北京大学2021年，好！",
        "e\u0301 Cafe\u0301 Å \u212b ﬁ", "🎉👨‍👩‍👧", f"{BEGIN}a{END} {CALL}b", "x\u00a0y\u3000z",
        "#include <a.h>\n\tif(x==1){}",
        "ſ'ſ 'S", "\u0000\ufffd", "▁a ▁", "<0x41> <unk> <s>"]


def hostile(count: int = 300) -> list[str]:
    draw = random.Random(0)
    letters = sorted({c for text in HARD for c in text})
    return ["".join(draw.choices(letters, k=draw.randint(1, 25))) for _ in range(count)]


def _steps(pre: str):
    """(normalizer, pre-tokenizer) of the models that llama.cpp calls by this name, from their tokenizer.json."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def split(digits: str):
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_WORDS % digits), "isolated"), bytes_only])

    return {
        "gpt-2": (None, plain),
        "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])),
        "llama-bpe": (None, split("{1,3}")),
        "qwen2": (normalizers.NFC(), split("")),
    }[pre]


PRES = ("gpt-2", "smollm", "llama-bpe", "qwen2")


@functools.lru_cache(maxsize=None)
def _trained(pre: str) -> str:
    made = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    made.normalizer, made.pre_tokenizer = _steps(pre)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([*CORPUS, *HARD] * 4, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet,
                                                                       show_progress=False))
    made.add_special_tokens([AddedToken(token, normalized=False) for token in (BEGIN, END, PAD)])
    made.add_tokens([AddedToken(CALL, normalized=False)])
    if pre == "llama-bpe":
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                   processors.TemplateProcessing(f"{BEGIN} $A", special_tokens=[
                                                       (BEGIN, made.token_to_id(BEGIN))])])
    return made.to_str()


def byte_level(pre: str) -> Tokenizer:
    """As in tokenizer.json."""
    return Tokenizer.from_str(_trained(pre))


def write_byte_level(path: Path, pre: str, **changed) -> GgufFile:
    """The same as llama.cpp's conversion stores it."""
    made = byte_level(pre)
    vocab = made.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    return write(path, model="gpt2", pre=pre, tokens=tokens,
                 token_type=[{BEGIN: 3, END: 3, PAD: 3, CALL: 4}.get(token, 1) for token in tokens],
                 merges=[" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]],
                 bos_token_id=vocab[BEGIN], eos_token_id=vocab[END], padding_token_id=vocab[PAD], **changed)


@functools.lru_cache(maxsize=None)
def pieces() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types as SentencePiece trains them: control, bytes, joined pieces, characters."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.train_from_iterator([*CORPUS, *HARD] * 4, trainers.BpeTrainer(vocab_size=420, show_progress=False))
    vocab = made.get_vocab()
    known = sorted((token for token in vocab if "🎉" not in token), key=vocab.get)  # the others become bytes
    joined, letters = ([token for token in known if (len(token) > 1) == more] for more in (True, False))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *letters, CALL]
    scores = [0.0] * 259 + [-float(i) for i in range(len(joined) + len(letters))] + [0.0]
    return tokens, scores, [2, 3, 3, *[6] * 256, *[1] * (len(joined) + len(letters)), 4]


def write_sentence_pieces(path: Path, **changed) -> GgufFile:
    tokens, scores, types = pieces()
    return write(path, **{"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "token_type": types,
                          "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **changed})


def write(path: Path, **metadata) -> GgufFile:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        add = {str: writer.add_string, list: writer.add_array, bool: writer.add_bool, int: writer.add_uint32}
        if value is not None:
            add[type(value)](f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GgufFile(path)
