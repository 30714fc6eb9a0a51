"""From a prompt's text to the text that continues it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Tuple

from jittor_lora.data.encoding import Encoder
from jittor_lora.data.template import Template
from jittor_lora.model.sampling import Sampling

Group = Tuple[Sequence[int], Sequence[Sequence[int]]]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for bytes that are no whole character


@dataclass(frozen=True)
class Decoding:
    """How a continuation is made.

    Args:
        max_new_tokens: its longest length in tokens.
        sampling: how a token is chosen.
        stop: text at which it ends, not part of it; end of text always ends it.
    """

    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: str | None = None


class Continuation:
    """The text of a continuation while its tokens come.

    Text is given out once it is certain: whole characters only (a character may take several tokens), and nothing
    that may yet turn out to be the beginning of the stop text.

    Args:
        decode: token ids to text.
        trim: leave out whitespace at the beginning (an answer follows its prompt after a space).

    Attributes:
        text: what was given out so far.
        done: end of text or the stop text was met.
    """

    def __init__(self, decode: Callable[[list[int]], str], eos_id: int | None, stop: str | None = None,
                 trim: bool = False):
        self._decode, self._eos_id, self._stop, self._trim = decode, eos_id, stop, trim
        self._tokens: list[int] = []
        self.text = ""
        self.done = False

    def add(self, token: int) -> str:
        """Take a token; the text that has become certain."""
        if self.done:
            return ""
        if token == self._eos_id:
            return self.finish()
        self._tokens.append(token)
        text = self._decode(self._tokens)
        at = text.find(self._stop) if self._stop else -1
        if at >= 0:
            self.done = True
            return self._give_out(text[:at])
        text = text.rstrip(REPLACEMENT)
        return self._give_out(text[: len(text) - _overlap(text, self._stop or "")])

    def finish(self) -> str:
        """No token comes any more; the text that was held back."""
        if self.done:
            return ""
        self.done = True
        return self._give_out(self._decode(self._tokens))

    def _give_out(self, text: str) -> str:
        new = (text.lstrip() if self._trim else text)[len(self.text) :]
        self.text += new
        return new


class Generator:
    """A model with its tokenizer, as a writer of texts.

    Args:
        model: a `CausalLM`, with or without an adapter.
        tokenizer: with `encode`, `decode` and `eos_id`.
    """

    def __init__(self, model, tokenizer, template: Template | None = None):
        self.model, self.tokenizer = model, tokenizer
        self.encoder = Encoder(tokenizer, template)

    def continue_text(self, prompt: str, decoding: Decoding,
                      on_text: Callable[[str], None] = lambda text: None) -> str:
        """The continuation of `prompt`; its pieces go to `on_text` as they become certain.

        Raises:
            UserError: the prompt is empty or too long for the model.
        """
        return self.continue_groups(self.groups([(None, prompt)]), decoding, False, lambda _, text: on_text(text))[0]

    def answer(self, context: str, questions: Sequence[str], decoding: Decoding,
               on_text: Callable[[int, str], None] = lambda index, text: None) -> list[str]:
        """The answers to questions about one context, which is read once; no whitespace at their beginnings.

        Raises:
            UserError: the prompt is too long for the model.
        """
        return self.continue_groups(self.groups([(context, q) for q in questions]), decoding, True, on_text)

    def groups(self, texts: Sequence[tuple[str | None, str]]) -> list[Group]:
        """Prompts, without a context, and questions about one, in token ids.

        Questions about the same context that follow each other share it, if the template lets them.
        """
        found: list[Group] = []
        for context, same in itertools.groupby(texts, lambda pair: pair[0]):
            if context is None:
                made = [self.encoder.plain_prompt(prompt) for _, prompt in same]
            else:
                made = [self.encoder.prompt(context, question) for _, question in same]
            if context is not None and self.encoder.template.shares_context:
                found.append((made[0][0], [branch for _, branch in made]))
            else:
                found += [(prefix, [branch]) for prefix, branch in made]
        return found

    def continue_groups(self, groups: Sequence[Group], decoding: Decoding, trim: bool = False,
                        on_text: Callable[[int, str], None] = lambda index, text: None,
                        on_end: Callable[[int], None] = lambda index: None, rows: int | None = None,
                        adapters: Sequence[str | None] | None = None) -> list[str]:
        """The continuations of prompts in token ids.

        Args:
            groups: (prefix, branches) each: what prompts start with, and how each of them goes on. Prompts are numbered
                through all groups.
            trim: leave out whitespace at the beginning of each continuation.
            on_text: called with the pieces of a continuation as they become certain.
            on_end: called when a continuation is whole.
            rows: most prompts that are continued at a time; 64 if None.
            adapters: of each group the name of its adapter, None for the base alone; by default those that are active.

        Raises:
            UserError: a prompt is empty or too long for the model; or there is no such adapter.
        """
        from jittor_lora.lora.reading import readers_of  # these bring Jittor
        from jittor_lora.model.generate import ROWS, generate_groups
        texts = [Continuation(self.tokenizer.decode, self.tokenizer.eos_id, decoding.stop, trim)
                 for _, branches in groups for _ in branches]

        def end(index: int) -> None:
            on_text(index, texts[index].finish())
            on_end(index)

        generate_groups(self.model, groups, decoding.max_new_tokens, decoding.sampling,
                        finished=lambda index, _: texts[index].done,
                        on_token=lambda index, token: on_text(index, texts[index].add(token)),
                        on_end=end, rows=rows or ROWS,
                        readers=None if adapters is None else readers_of(self.model, adapters))
        return [text.text for text in texts]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
