"""What is served, by name: the base, and each adapter beside it."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.prompting import Prompting
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_source import AdapterSource, open_adapter
from jittor_lora.formats.added_tokens import with_added_tokens
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.inference.extraction import Extractor
from jittor_lora.inference.generator import Generator
from jittor_lora.serving.api.token_texts import TokenTexts
from jittor_lora.session import Session

LONGEST_NAME = 200  # characters


@dataclass(frozen=True, eq=False)
class Served:
    """A model that requests name.

    Attributes:
        name: in requests.
        adapter: its name in the session; None for the base alone.
        generator: of continuations and of answers to questions about a context.
        extractor: of spans.
        chat: of turns in conversations; None without a chat template.
        texts: of single tokens.
        prompting: how texts are put together for it.
        folder: of the adapter's files; None for the base.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    adapter: Optional[str]
    generator: Generator
    extractor: Extractor
    chat: Optional[Generator]
    texts: TokenTexts
    prompting: Prompting
    folder: Optional[Path]
    created: int


class Models(Mapping[str, Served]):
    """The base and the adapters by name, the base first.

    Reading is safe in any thread; `load`, `retire` and `delete` belong to the thread that computes.

    Attributes:
        base: the name of the base.
    """

    def __init__(self, session: Session, base: Optional[str] = None):
        self.session, self.base = session, base or session.base.name
        self._tokenizers: dict[str, Tokenizer] = {}
        self._texts = TokenTexts(self._tokenizer("text"))
        self._served = {self.base: self._made(self.base, None, session.base_prompting, None)}

    def __getitem__(self, name: str) -> Served:
        return self._served[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)

    def load(self, name: str, source: Union[str, Path, AdapterSource]) -> Served:
        """Load an adapter and serve it under this name.

        Raises:
            UserError: the name is taken or cannot be one, the adapter cannot be read or is not for this base, or it
                adds tokens to the vocabulary.
        """
        self.check_name(name)
        source = open_adapter(source)
        refuse_added_tokens(self.session, source)
        inside = name.replace(".", "_")  # the session's names have no dots
        while inside in self.session.adapters:
            inside += "_"
        self.session.load_adapter(source, inside)
        return self.adopt(name, inside, source.folder)

    def adopt(self, name: str, inside: str, folder: Path) -> Served:
        """Serve an adapter that the session has already.

        Raises:
            UserError: the name is taken or cannot be one.
        """
        self.check_name(name)
        served = self._made(name, inside, self.session.promptings.get(inside, self.session.base_prompting), folder)
        self._served = {**self._served, name: served}
        return served

    def retire(self, name: str) -> Served:
        """Take an adapter off the list; what is computed with it goes on until `delete`.

        Raises:
            UserError: there is none of this name.
        """
        if name not in self._served or name == self.base:
            raise UserError(f"{name}: " + ("the base cannot be unloaded." if name == self.base else "not loaded."))
        retired = self._served[name]
        self._served = {other: served for other, served in self._served.items() if other != name}
        return retired

    def delete(self, served: Served) -> None:
        """Take a retired adapter, which nothing is computed with any more, out of the network."""
        self.session.delete_adapter(served.adapter)

    def check_name(self, name: str) -> None:
        """
        Raises:
            UserError: the name is taken or cannot be one.
        """
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()):
            raise UserError(f"the name of an adapter: expected 1 to {LONGEST_NAME} printable characters without spaces "
                            f"around them; found {name[:LONGEST_NAME]!r}.")
        if name in self._served:
            raise UserError(f"{name}: a model of this name is loaded. Unload it, or choose another name.")

    def _made(self, name: str, adapter: Optional[str], prompting: Prompting, folder: Optional[Path]) -> Served:
        model, tokenizer = self.session.model, self._tokenizer(prompting.special_tokens)
        chat = None
        if prompting.chat is not None:
            chat = Generator(model, tokenizer, prompting.template, ChatEncoder(tokenizer, prompting.chat))
        extractor = Extractor(model, tokenizer, prompting.template, smoothing=prompting.label_smoothing)
        return Served(name, adapter, Generator(model, tokenizer, prompting.template), extractor, chat, self._texts,
                      prompting, folder, int(time.time()))

    def _tokenizer(self, special_tokens: str) -> Tokenizer:
        """One that reads special tokens so. Each meaning has its own: several threads use them, so none may change."""
        if special_tokens not in self._tokenizers:
            made = copy.deepcopy(self.session.tokenizer)
            made.special_tokens = special_tokens
            self._tokenizers[special_tokens] = made
        return self._tokenizers[special_tokens]


def refuse_added_tokens(session: Session, source: AdapterSource) -> None:
    """
    Raises:
        UserError: the adapter adds tokens to the vocabulary.
    """
    if with_added_tokens(session.checkpoint, session.tokenizer, source)[0] is not session.checkpoint:
        raise UserError(f"{source.folder}: the adapter adds tokens to the base's vocabulary, which changes the base "
                        "itself. It cannot be loaded beside others: start a server with this adapter first.")
