"""The one place where texts become token ids: training, evaluation and generation all come through here."""

from __future__ import annotations

from typing import Optional, Protocol

from jittor_lora.data.template import Template


class TokenizerLike(Protocol):
    """What is needed of a tokenizer; `encode` adds no special tokens, `eos_id` is None if there is no end of text."""

    eos_id: Optional[int]

    def encode(self, text: str) -> list[int]: ...


class Encoder:
    """Encodes the pieces that a template makes of a question (see template.py for why in pieces)."""

    def __init__(self, tokenizer: TokenizerLike, template: Template | None = None):
        self.tokenizer = tokenizer
        self.template = template or Template()
        # Questions of one context come one after the other, and their prefix is most of the text.
        self._last_prefix: tuple[str, list[int]] = ("", [])

    def prompt(self, context: str, question: str) -> tuple[list[int], list[int]]:
        """Token ids of (the shared prefix, the rest of the prompt); the prefix is empty if nothing is shared."""
        prefix, branch = self.template.prompt_pieces(context, question)
        if self._last_prefix[0] != prefix:
            self._last_prefix = (prefix, self.tokenizer.encode(prefix))
        return self._last_prefix[1], self.tokenizer.encode(branch)

    def plain_prompt(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt without a template: (all but the last, the last); both empty for an empty text."""
        ids = self.tokenizer.encode(text) if text else []
        return ids[:-1], ids[-1:]

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer in the template, end of text included if the tokenizer has one."""
        return self.completion(self.template.completion_text(text))

    def completion(self, text: str) -> list[int]:
        """Token ids of a completion as it stands, end of text included if the tokenizer has one."""
        end = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        return self.tokenizer.encode(text) + end
