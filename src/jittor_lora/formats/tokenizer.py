"""Tokenizers of base models: tokenizer.json, vocab.json with merges.txt, or vocab.txt.

The ids of a whole text are those of transformers' AutoTokenizer, with one exception. Text is data: a special token's
spelling in it, such as <|endoftext|> in a paragraph, is encoded as ordinary characters (transformers'
`split_special_tokens=True`), unless `special_tokens` says otherwise.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import tokenizers

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write, write_json
from jittor_lora.files.untrusted import read_input
from jittor_lora.formats import word_piece
from jittor_lora.formats.byte_level import END_OF_TEXT, byte_level_bpe, gpt2_tokenizer, parse_merges
from jittor_lora.formats.hugging_face import LARGEST_JSON, read_json, shorten
from jittor_lora.formats.rendered import AddedSpan, RenderedText
from jittor_lora.formats.tokenizer_check import check_steps
from jittor_lora.formats.tokenizer_check import library_errors as _library
from jittor_lora.formats.tokenizer_steps import SPECIAL_NAMES, apply_config, around, cuts_before_space, spelling
from jittor_lora.model.config import ModelConfig

_GPT2_VOCABULARY = 50257
GPT2_SHIPPED = "GPT-2's tokenizer, which comes with jittor-lora"


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        eos_id: the token that ends a text, None if there is none.
        end_ids: all tokens that end a text, including that one.
        opening: ids that the tokenizer puts before each text.
        ending: ids that close a complete text: those that the tokenizer puts after it, and end of text.
        special: the spellings of its special tokens.
        cuts_before_space: whether parts of a text that start with a space encode independently, see
            `tokenizer_steps.py`.
        vocab_size: the highest id plus one.
        origin: its source, for messages.
        notes: sentences on settings that are not applied.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], origin: str, eos_id: int | None,
                 end_ids: Iterable[int] = ()):
        """
        Args:
            backend: its special tokens are those that no text produces.
            config: the content of tokenizer_config.json.
            end_ids: tokens that end a text, besides those of `backend` and `eos_id`.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.config = dict(config)
        self.notes: list[str] = []
        self.origin = origin
        self.opening, closing = around(backend)
        self.eos_id = closing[-1] if eos_id is None and closing else eos_id
        self.ending = closing if self.eos_id in (None, *closing[-1:]) else [*closing, self.eos_id]
        self.end_ids = frozenset([*end_ids, *self.ending[:1], *([] if self.eos_id is None else [self.eos_id])])
        self.special = tuple(token.content for _, token in sorted(backend.get_added_tokens_decoder().items())
                             if token.special)
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self._rows = self.vocab_size  # of the model's embedding
        self.cuts_before_space = cuts_before_space(backend)
        self.special_tokens = "text"
        self._rendered: RenderedText | None = None  # a copy of `backend`, made if conversations need it

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token → id, with added tokens."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def special_tokens(self) -> str:
        """How a special token's spelling in a text is read: as "text" like any other, or as the "token"."""
        return "text" if self._backend.encode_special_tokens else "token"

    @special_tokens.setter
    def special_tokens(self, meaning: str) -> None:
        self._backend.encode_special_tokens = meaning == "text"

    def fit(self, config: ModelConfig, end_ids: Iterable[int] = ()) -> None:
        """Adjust to the model that reads the tokens.

        Tokens added to the vocabulary but not to the model, such as [PAD], are tolerated until a text needs them.

        Args:
            end_ids: tokens that end a text according to the model.

        Raises:
            UserError: the vocabulary, or the tokens around each text, have ids without an embedding in the model.
        """
        self._rows = config.vocab_size
        count = 1 + max(self._backend.get_vocab(with_added_tokens=False).values(), default=-1)
        needed = [*self.opening, *self.ending]
        if count > self._rows or max(needed, default=-1) >= self._rows:
            raise UserError(f"{self.origin}: the tokenizer has {self.vocab_size} tokens, the model's embedding only "
                            f"{self._rows} rows. Use the tokenizer that belongs to the model.")
        self.end_ids |= {token for token in end_ids if _may_end(self._backend, token)}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as the start of a text, without the tokens put around one.

        Raises:
            UserError: the text has lone surrogates, which UTF-8 cannot represent, or the tokenizer has no tokens for
                it, or the model no embedding for some.
        """
        _check_unicode(text)
        with _library(f"{self.origin}: the tokenizer fails at a text"):
            ids = self._backend.encode(text, add_special_tokens=False).ids
        return self._checked(ids)

    def added(self, text: str) -> list[AddedSpan]:
        """The added tokens that a text spells out, special ones and others."""
        return self._rendering().added(text)

    def encode_rendered(self, text: str, special: Sequence[AddedSpan]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a rendered conversation, and the characters (start, end) of each token.

        Nothing is put around it: a chat template writes all of its tokens.

        Args:
            special: the spans that are special tokens, in order; any other spelling of one is text, whatever
                `special_tokens` says.

        Raises:
            UserError: as for `encode`.
        """
        _check_unicode(text)
        with _library(f"{self.origin}: the tokenizer fails at a text"):
            ids, offsets = self._rendering().encode(text, special)
        return self._checked(ids), offsets

    def begin(self, text: str) -> list[int]:
        """Token ids of a text that may be continued."""
        return self.opening + self.encode(text)

    def extend(self, text: str, ids: Sequence[int], parts: Iterable[str]) -> list[list[int]]:
        """The token ids of `text` followed by each of `parts`.

        Args:
            ids: of `text`, from `begin` or this function.

        Returns: ids of whole texts. They need not start with `ids`: a token may span the text and the part. If the
            tokenizer splits as GPT-2's does, parts are encoded independently, with the same result for parts that
            start with a space.
        """
        if self.cuts_before_space:
            return [[*ids, *self.encode(part)] for part in parts]
        return [self.begin(text + part) for part in parts]

    def end(self, ids: list[int]) -> list[int]:
        """The token ids of a complete text."""
        spelled = self.special_tokens == "token" and self.ending and ids[-len(self.ending) :] == self.ending
        return ids if spelled else ids + self.ending

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these tokens, special ones spelled out; bytes that are not UTF-8 become U+FFFD.

        WordPiece stores no spaces: they are put between words, and none between Chinese characters.
        """
        with _library(f"{self.origin}: the tokenizer fails at its tokens"):
            text = self._backend.decode([int(i) for i in ids], skip_special_tokens=False)
        return word_piece.without_spaces(text) if self.algorithm == "WordPiece" else text

    @property
    def algorithm(self) -> str:
        """The model type: "BPE", "Unigram", "WordPiece", "WordLevel"."""
        return type(self._backend.model).__name__

    def _rendering(self) -> RenderedText:
        if self._rendered is None:
            with _library(f"{self.origin}: the tokenizer cannot be copied"):
                self._rendered = RenderedText(self._backend)
        return self._rendered

    def _checked(self, ids: list[int]) -> list[int]:
        if self._rows < self.vocab_size and max(ids, default=0) >= self._rows:
            self._refuse(ids)
        return ids

    def _refuse(self, ids: Sequence[int]) -> None:
        found = sorted({token for token in ids if token >= self._rows})
        names = shorten((f"{self._backend.id_to_token(token)!r} ({token})" for token in found), 5)
        raise UserError(f"{self.origin}: a text uses {names}, but the model's embedding has {self._rows} rows: the "
                        "tokens were added to the tokenizer only. Leave them out of the text, or add rows for them to "
                        "the model (resize_token_embeddings in transformers).")

    def serialized(self) -> str:
        """The content of tokenizer.json."""
        return self._backend.to_str(pretty=True)

    def save(self, folder: str | PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads.

        Raises:
            UserError: the folder cannot be written.
        """
        with atomic_write(Path(folder) / "tokenizer.json") as stream:
            stream.write(self.serialized())
        write_json(Path(folder) / "tokenizer_config.json", self.config)


def read_tokenizer(folder: str | PathLike, model: ModelConfig | None = None) -> Tokenizer:
    """The tokenizer in a Hugging Face directory.

    Its end of text is the `eos_token` of the tokenizer's files, else the model's `eos_token_id`, else <|endoftext|>
    if that token exists (GPT-2's old files name none), else what the tokenizer puts after each text: of a Chinese GPT-2
    with vocab.txt that is [SEP], which a note says. A GPT-2 model whose folder has no tokenizer, because the model was
    saved alone, gets the shipped one; `origin` is then GPT2_SHIPPED.

    Raises:
        UserError: no tokenizer, or files that are malformed or do not fit together.
    """
    folder = Path(folder)
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config.update(read_json(folder / name))
    if (folder / "tokenizer.json").is_file():
        origin = str(folder / "tokenizer.json")
        backend = _from_json(folder / "tokenizer.json", config, model)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        origin = str(folder / "vocab.json")
        backend = _from_vocabulary(folder, config)
    elif (folder / "vocab.txt").is_file():
        origin = str(folder / "vocab.txt")
        backend = _from_word_pieces(folder, config, model)
    elif model is not None and model.family == "gpt2" and model.vocab_size == _GPT2_VOCABULARY:
        origin = GPT2_SHIPPED
        backend = gpt2_tokenizer()
    else:
        raise UserError(_no_tokenizer(folder))
    with _library(f"{origin}: tokenizer_config.json"):
        notes = apply_config(backend, config, origin, model.family if model else None,
                             Path(origin).name in ("tokenizer.json", "vocab.txt"))
    eos_id = _end_of_text(backend, config, model, origin)
    if eos_id is None and Path(origin).name == "vocab.txt":
        eos_id = around(backend)[1][-1]
        notes.append(f"{origin}: the model names no end of text. {backend.id_to_token(eos_id)} ends each text, as in "
                     "the form that BERT's tokenizer gives it.")
    if eos_id is not None and backend.id_to_token(eos_id) is not None:
        config.setdefault("eos_token", backend.id_to_token(eos_id))
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    tokenizer = Tokenizer(backend, config, origin, eos_id)
    tokenizer.notes = notes
    return tokenizer


def _from_json(path: Path, config: Mapping[str, Any], model: ModelConfig | None) -> tokenizers.Tokenizer:
    """tokenizer.json, with every token marked special that the other files name as such.

    Only a token marked special is one that no text may produce.
    """
    content = read_json(path)
    added = content.get("added_tokens")
    ids = {*model.eos_token_ids, model.bos_token_id} if model else set()
    special = _special_tokens(config)
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and (spelling(token) in special or type(token.get("id")) is int
                                        and token["id"] in ids):
            token["special"] = True
    check_steps(path, content)
    with _library(f"{path}: not a tokenizer that the tokenizers library (version {tokenizers.__version__}) reads"):
        return tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def _from_vocabulary(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's older files. Tokens in added_tokens.json must have the ids that follow vocab.json's."""
    vocab, added = read_json(folder / "vocab.json"), _added_tokens(folder)
    ids = [*vocab.values(), *added.values()]
    if not all(type(i) is int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise UserError(f"{folder}: vocab.json and added_tokens.json: expected the ids 0 to {len(ids) - 1}, each once.")
    special = {*_special_tokens(config), END_OF_TEXT}
    known = sorted(special & vocab.keys(), key=vocab.get)
    with _library(f"{folder / 'merges.txt'}"):
        merges = parse_merges(read_input(folder / "merges.txt", LARGEST_JSON).decode("utf-8"))
        backend = byte_level_bpe(vocab, merges, known, prefix_space=config.get("add_prefix_space") is True)
        for token in sorted(added, key=added.get):
            backend.add_tokens([tokenizers.AddedToken(token, special=token in special, normalized=False)])
        return backend


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = text[:60].encode("utf-8", "backslashreplace").decode()
        raise UserError(f"text that is not valid Unicode cannot be encoded: {shown!r}.") from error


def _added_tokens(folder: Path) -> dict[str, int]:
    """The content of added_tokens.json: tokens beyond the vocabulary file's."""
    path = folder / "added_tokens.json"
    added = read_json(path) if path.is_file() else {}
    if not all(type(index) is int for index in added.values()):
        raise UserError(f"{path}: expected token ids; found other values.")
    return added


def _from_word_pieces(folder: Path, config: dict[str, Any], model: ModelConfig | None) -> tokenizers.Tokenizer:
    """BERT's older files, which Chinese GPT-2 models have; names the class in `config`."""
    path = folder / "vocab.txt"
    named = config.get("tokenizer_class") or (model.source.get("tokenizer_class") if model else None)
    if named not in (None, *word_piece.CLASSES):
        raise UserError(f"{folder}: beside vocab.txt alone, expected tokenizer_class {word_piece.CLASSES[0]}; found "
                        f"{str(named)[:40]}. Convert the tokenizer where transformers is installed: "
                        "AutoTokenizer.from_pretrained(…).save_pretrained(…).")
    config["tokenizer_class"] = word_piece.CLASSES[0]
    vocab, added, special = word_piece.read_vocabulary(path), _added_tokens(folder), _special_tokens(config)
    with _library(str(path)):
        backend = word_piece.word_piece(vocab, config, str(path))
        for token in sorted(added, key=added.get):
            backend.add_tokens([tokenizers.AddedToken(token, special=token in special, normalized=False)])
    wrong = [token for token, index in added.items() if backend.token_to_id(token) != index]
    if wrong:
        raise UserError(f"{folder / 'added_tokens.json'}: expected ids that follow the {len(vocab)} of vocab.txt; "
                        f"found others for {shorten(wrong, 5)}.")
    return backend


def _special_tokens(config: Mapping[str, Any]) -> set[str]:
    """The spellings that tokenizer_config.json or special_tokens_map.json gives to special tokens."""
    values = [config.get(name) for name in SPECIAL_NAMES]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name)
        values += more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
    return {text for text in map(spelling, values) if text}


def _end_of_text(backend: tokenizers.Tokenizer, config: Mapping[str, Any], model: ModelConfig | None,
                 origin: str) -> int | None:
    named = spelling(config.get("eos_token"))
    if named is not None:
        with _library(f"{origin}: eos_token"):
            token = backend.token_to_id(named)
        if token is None:
            raise UserError(f"{origin}: the vocabulary lacks eos_token {named!r}, which the tokenizer's configuration "
                            "names.")
        return token
    if model is not None and model.eos_token_id is not None and _may_end(backend, model.eos_token_id):
        return model.eos_token_id
    return backend.token_to_id(END_OF_TEXT)


def _may_end(backend: tokenizers.Tokenizer, token: int) -> bool:
    """Can a token that a model's configuration names be the end of text?

    A Chinese GPT-2's names GPT-2's 50256, by default, which is a character in some of their vocabularies: of WordPiece,
    only a special token can.
    """
    if type(backend.model).__name__ != "WordPiece":
        return True
    found = backend.get_added_tokens_decoder().get(token)
    return found is not None and found.special


def _no_tokenizer(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    text = (f"{folder}: expected tokenizer.json, vocab.json and merges.txt, or vocab.txt; "
            f"found {shorten(found, 8) or 'nothing'}. Copy them from the model that this one was derived from")
    if (folder / "tokenizer.model").is_file():
        text += (", or convert tokenizer.model where transformers is installed: "
                 "AutoTokenizer.from_pretrained(…).save_pretrained(…)")
    return text + "."
