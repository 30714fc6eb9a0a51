"""Small tokenizers of every kind that the tokenizers library builds, trained on a few lines."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ["<unk>", "<s>", "</s>", "[CLS]", "[SEP]"]
CORPUS = ["Context: the town has ten houses.\nQuestion: how many houses?\nAnswer: ten", "a river, the R1.",
          "Café in the old town  (2 rooms)", "什么 是 首都? 北京", "don't we'll"]
TEXTS = [*CORPUS, "", " ", "  two  spaces ", " a", "▁a", "\n", "a\n\n b", "Cafe\u0301", "İstanbul ﬁ ²", "🎉 <s> </s>x",
         "the\u3000town", "[CLS]", "  \n", "\u200ba"]
_LETTERS = sorted({c for line in CORPUS for c in line} | set("abcdefghijklmnopqrstuvwxyz0123456789.:?!"))


def _bpe(words, before=None, **options):
    made = Tokenizer(models.BPE(unk_token="<unk>", **options))
    made.normalizer, made.pre_tokenizer = before, words
    byte_level = pre_tokenizers.ByteLevel.alphabet() if "ByteLevel" in str(words) else _LETTERS
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=byte_level,
                                  show_progress=False)
    made.train_from_iterator(CORPUS * 4, trainer)
    return made


def _word_piece(before):
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = before, pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(CORPUS * 4, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL,
                                                                   show_progress=False))
    return made


def _unigram(words, before=None):
    made = Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer, made.decoder = before, words, decoders.Metaspace()
    made.train_from_iterator(CORPUS * 4, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL,
                                                                 unk_token="<unk>", show_progress=False))
    return made


def _llama():
    """Like Llama-2's: no word splitting, a space before the text, byte fallback."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = "abcdefghijklmnopqrstuvwxyz:?"
    merges = [("▁", "▁"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("t", "e"), ("▁", "a"), (":", "▁"), ("te", "n")]
    tokens += [*letters, *dict.fromkeys(a + b for a, b in merges)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True,
                                byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    made.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return made


def _byte_level(words, before=None):
    made = _bpe(words, before)
    made.decoder = decoders.ByteLevel()
    return made


_WORDS = r"(?i:'s|'t|'re|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

KINDS = {
    "byte-level": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte-level with a space before": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "byte-level, digits cut off": lambda: _byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
    "byte-level, Llama-3's words": lambda: _byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])),
    "byte-level, NFC": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC()),
    "metaspace": lambda: _bpe(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "metaspace, first": lambda: _bpe(pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "metaspace, never": lambda: _bpe(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "llama": _llama,
    "WordPiece": lambda: _word_piece(normalizers.BertNormalizer()),
    "WordPiece, no normalizer": lambda: _word_piece(None),
    "unigram": lambda: _unigram(pre_tokenizers.Metaspace()),
    "unigram, NFKC and strip": lambda: _unigram(
        pre_tokenizers.Metaspace(), normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(),
                                                          normalizers.Replace(Regex(" {2,}"), " ")])),
    "whitespace words": lambda: _bpe(pre_tokenizers.Whitespace(), normalizers.Lowercase()),
}

_S, _E, _C, _P = (("<s>", 1), ("</s>", 2), ("[CLS]", 3), ("[SEP]", 4))
AROUND = {
    "nothing": lambda: None,
    "offsets": lambda: processors.ByteLevel(trim_offsets=True),
    "begin": lambda: processors.TemplateProcessing(single="<s> $A", special_tokens=[_S]),
    "begin and end": lambda: processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[_S, _E]),
    "several": lambda: processors.TemplateProcessing(single="[CLS] <s> $A [SEP] </s>", special_tokens=[_S, _E, _C, _P]),
    "bert": lambda: processors.BertProcessing(_P, _C),
    "roberta": lambda: processors.RobertaProcessing(_E, _S),
    "a sequence": lambda: processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[_C, _P])]),
}


def make(kind: str, around: str = "nothing") -> Tokenizer:
    made = Tokenizer.from_str(_trained(kind))
    if AROUND[around]() is not None:
        made.post_processor = AROUND[around]()
    return made


def save(folder: Path, made: Tokenizer, **config) -> Path:
    """tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
             "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **config}))
    return folder


@functools.lru_cache(maxsize=None)
def _trained(kind: str) -> str:
    return KINDS[kind]().to_str()
