"""A Chinese GPT-2 in files: vocab.txt in BERT's form, and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import model_files
import tiny

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "今天天气很好，我们去北京大学图书馆看书。", "2021年3月14日，圆周率是3.14159……",
    "The river's source isn't in the HILLS!",
    "我爱Python编程 and 机器学习", "Café naïve Ünïcödé ĞİSTANBUL Straße ﬁ ²", "한국어 문장 かな が カタカナ ガ",
    "emoji 🎉👨‍👩‍👧 🇨🇳 done", "“引号”‘单’《书名》—破折号——…",
    "全角　空格ＡＢＣ１２３，！？", "\u200b零宽\ufeff\u00ad连\u0000字\ufffd",
    "tabs\tand\nnew\r\nlines  two  spaces ", "", " ", "\n", "𠀀𪚥扩展", "हिन्दी ไทย العربية", "https://example.org/a?b=c&d=%20#x",
    "[SEP] 文本里的 [CLS]标记 [MASK]", "##号 # ## 井", "a" * 120 + " 长",
    "don't we'll 'quoted' U.S.A. 1,000,000 $5.00 10%",
]
WORDS = ["the", "river", "source", "in", "hill", "we", "love", "machine", "python", "Python", "learning", "done", "and"]


def vocabulary() -> list[str]:
    """Pieces of TEXTS: characters, whole and within a word, in both cases and without accents; a few words."""
    letters = sorted({c for text in TEXTS for c in text + text.lower() if not c.isspace() and c.isprintable()}
                     - set("İÜ🎉") | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    return [*SPECIAL, *letters, *(f"##{c}" for c in letters), *WORDS, "##ing"]


def config(**changed) -> dict:
    """Like those of Chinese models on the Hub, which name no end of text."""
    return {**tiny.GPT2, "vocab_size": len(vocabulary()), "n_positions": 256, "bos_token_id": 50256,
            "eos_token_id": 50256, "tokenizer_class": "BertTokenizer", **changed}


def make_folder(folder: Path, settings: dict | None = None, **changed) -> Path:
    """
    Args:
        settings: the content of tokenizer_config.json; no file if None.
        changed: keys of config.json.
    """
    source = config(**changed)
    model_files.make_folder(folder, source, tiny.tensors(source))
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
