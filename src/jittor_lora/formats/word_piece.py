"""WordPiece, BERT's kind of tokenizer (Devlin et al. 2019, section 3): the vocab.txt of Chinese GPT-2 models.

A text is cleaned, its Chinese characters are set apart, and each word is cut into the longest pieces of the vocabulary;
pieces within a word start with ##. Whitespace, and in some models case and accents, are lost. The models were trained
on [CLS] text [SEP]; they have no other end of text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import read_input
from jittor_lora.formats.hugging_face import LARGEST_JSON

BEGIN, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
CLASSES = ("BertTokenizer", "BertTokenizerFast")
_SPECIAL = {"cls_token": BEGIN, "sep_token": END, "unk_token": UNKNOWN, "pad_token": "[PAD]", "mask_token": "[MASK]"}
_SETTINGS = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}  # BertTokenizer's defaults

# Characters written without spaces: BERT's Chinese characters, CJK punctuation, full-width forms
_CHINESE = ("\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0002a6df"
            "\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f")
_SPACES = re.compile(f"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])")


def read_vocabulary(path: Path) -> dict[str, int]:
    """The tokens of a vocab.txt, one per line; of equal ones the last counts, as in transformers.

    Raises:
        UserError: the file cannot be read, is too large, or is not UTF-8.
    """
    try:
        text = read_input(path, LARGEST_JSON).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8; found other bytes at {error.start}. Fetch the file again, or save it "
                        "as UTF-8.") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return {token: index for index, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}


def word_piece(vocab: Mapping[str, int], config: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer that transformers' BertTokenizer makes of a vocabulary.

    Args:
        config: the content of tokenizer_config.json.
        where: the vocabulary's file, for messages.

    Raises:
        UserError: the vocabulary lacks a token that BERT's form needs, or a setting is malformed.
    """
    special = {name: _spelling(config.get(name), default) for name, default in _SPECIAL.items()}
    begin, end, unknown = (special[name] for name in ("cls_token", "sep_token", "unk_token"))
    lacking = [token for token in (unknown, begin, end) if token not in vocab]
    if lacking:
        raise UserError(f"{where}: expected the tokens {unknown}, {begin} and {end}, each on a line; "
                        f"{', '.join(lacking)} not found. Is it the vocabulary of a BERT tokenizer?")
    made = Tokenizer(models.WordPiece(dict(vocab), unk_token=unknown))
    made.normalizer = normalizer(config, where)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(token, vocab[token]) for token in (begin, end)])
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special.values() if token in vocab])
    return made


def normalizer(config: Mapping[str, Any], where: str) -> normalizers.Normalizer:
    """BERT's preparation of a text as tokenizer_config.json sets it.

    Raises:
        UserError: a setting is not true or false.
    """
    found = {name: config.get(name, default) for name, default in _SETTINGS.items()}
    wrong = [f"{name}: expected true or false; found {str(value)[:40]}" for name, value in found.items()
             if type(value) is not bool and not (name == "strip_accents" and value is None)]
    if wrong:
        raise UserError(f"{where}: tokenizer_config.json: {'; '.join(wrong)}.")
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=found["tokenize_chinese_chars"],
                                      strip_accents=found["strip_accents"], lowercase=found["do_lower_case"])


def without_spaces(text: str) -> str:
    """Decoded text without the spaces that the decoder puts between Chinese characters."""
    return _SPACES.sub("", text)


def _spelling(token: Any, default: str) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else default
