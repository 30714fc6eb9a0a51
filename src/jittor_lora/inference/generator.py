"""From a prompt's text to the text that continues it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Tuple

from jittor_lora.data.encoding import Encoder
from jittor_lora.data.template import Template
from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.extraction import ending_tokens
from jittor_lora.inference.sampling import Sampling

Group = Tuple[Sequence[int], Sequence[Sequence[int]]]
FEW = 8  # tokens: more than the bytes of a character
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for bytes that are no whole character


@dataclass(frozen=True)
class Decoding:
    """How a continuation is made.

    Args:
        max_new_tokens: its longest length in tokens.
        sampling: how a token is chosen.
        stop: text at which it ends, not part of it; end of text always ends it.
        beams: search for the likeliest text with so many beams; None for token by token. A beam ends with a token that
            begins with the stop text.
    """

    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: str | None = None
    beams: Beams | None = None


class Continuation:
    """The text of a continuation while its tokens come.

    Text is given out once it is certain: whole characters only (a character may take several tokens), and nothing
    that may yet turn out to be the beginning of the stop text.

    Args:
        decode: token ids to text.
        ends: tokens at which a text ends.
        before: the tokens that are continued, or the last of them: how one is spelled may depend on what it follows.
        trim: leave out whitespace at the beginning (an answer follows its prompt after a space).

    Attributes:
        text: what was given out so far.
        done: end of text or the stop text was met.
    """

    def __init__(self, decode: Callable[[list[int]], str], ends: Collection[int], stop: str | None = None,
                 trim: bool = False, before: Sequence[int] = ()):
        self._decode, self._ends, self._stop, self._trim = decode, ends, stop, trim
        self._tokens = _whole_characters(decode, before)
        self._before = len(decode(self._tokens))
        self.text = ""
        self.done = False

    def add(self, token: int) -> str:
        """Take a token; the text that has become certain."""
        if self.done:
            return ""
        if token in self._ends:
            return self.finish()
        self._tokens.append(token)
        text = self._decoded()
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
        return self._give_out(self._decoded())

    def _decoded(self) -> str:
        return self._decode(self._tokens)[self._before :]

    def _give_out(self, text: str) -> str:
        new = (text.lstrip() if self._trim else text)[len(self.text) :]
        self.text += new
        return new


class Generator:
    """A model with its tokenizer, as a writer of texts.

    Args:
        model: a `CausalLM`, with or without an adapter.
        tokenizer: a `Tokenizer`.
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
                found += [(prefix, [last]) for prefix, last in (self.encoder.plain_prompt(text) for _, text in same)]
            elif self.encoder.template.shares_context:
                found.append(self.encoder.prompts(context, [question for _, question in same]))
            else:
                found += [self.encoder.prompts(context, [question]) for _, question in same]
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
        if decoding.beams is not None:
            found = self.search(groups, decoding, trim, rows, adapters, on_end)
            for index, several in enumerate(found):
                on_text(index, several[0])
            return [several[0] for several in found]
        from jittor_lora.inference.generate import ROWS, generate_groups  # these import Jittor
        from jittor_lora.inference.readers import readers_of
        texts = [self._continuation(decoding, trim, [*prefix[-FEW:], *branch])
                 for prefix, branches in groups for branch in branches]

        def end(index: int) -> None:
            on_text(index, texts[index].finish())
            on_end(index)

        generate_groups(self.model, groups, decoding.max_new_tokens, decoding.sampling,
                        finished=lambda index, _: texts[index].done,
                        on_token=lambda index, token: on_text(index, texts[index].add(token)),
                        on_end=end, rows=rows or ROWS,
                        readers=None if adapters is None else readers_of(self.model, adapters),
                        ends=self._ends(decoding) if decoding.sampling.min_new_tokens else ())
        return [text.text for text in texts]

    def continuations(self, groups: Sequence[Group], decoding: Decoding, count: int,
                      trim: bool = False) -> list[list[str]]:
        """`count` continuations of each prompt: the best that beam search finds, else each drawn for itself.

        Raises:
            UserError: as `continue_groups`.
        """
        if decoding.beams is not None:
            return [texts[:count] for texts in self.search(groups, decoding, trim)]
        repeated = [(prefix, [prompt for prompt in prompts for _ in range(count)]) for prefix, prompts in groups]
        texts = self.continue_groups(repeated, decoding, trim)
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def search(self, groups: Sequence[Group], decoding: Decoding, trim: bool = False, rows: int | None = None,
               adapters: Sequence[str | None] | None = None,
               on_end: Callable[[int], None] = lambda index: None) -> list[list[str]]:
        """The texts that beam search finds for each prompt, best first; arguments as in `continue_groups`.

        Raises:
            UserError: as there, or the tokenizer has no token that ends a text.
        """
        from jittor_lora.inference.beam import ROWS, search_groups  # these import Jittor
        from jittor_lora.inference.readers import readers_of
        readers = [None] * len(groups) if adapters is None else readers_of(self.model, adapters)
        starts = [0, *accumulate(len(prompts) for _, prompts in groups)]
        found: dict[int, list[str]] = {}
        for reader in {id(reader): reader for reader in readers}.values():
            chosen = [i for i, other in enumerate(readers) if other is reader]
            numbers = [n for i in chosen for n in range(starts[i], starts[i + 1])]
            texts = search_groups(self.model, [groups[i] for i in chosen], decoding.max_new_tokens, decoding.beams,
                                  self._ends(decoding), decoding.sampling, rows or ROWS,
                                  lambda index, numbers=numbers: on_end(numbers[index]), reader)
            prompts = [[*groups[i][0][-FEW:], *branch] for i in chosen for branch in groups[i][1]]
            found.update((n, [self._text(hypothesis.tokens, decoding, trim, prompt) for hypothesis in several])
                         for n, prompt, several in zip(numbers, prompts, texts))
        return [found[n] for n in range(starts[-1])]

    def _ends(self, decoding: Decoding) -> list[int]:
        return ending_tokens(self.tokenizer, decoding.stop, self.model.config.vocab_size)

    def _continuation(self, decoding: Decoding, trim: bool, prompt: Sequence[int]) -> Continuation:
        return Continuation(self.tokenizer.decode, self.tokenizer.end_ids, decoding.stop, trim, prompt)

    def _text(self, tokens: Sequence[int], decoding: Decoding, trim: bool, prompt: Sequence[int]) -> str:
        text = self._continuation(decoding, trim, prompt)
        for token in tokens:
            text.add(token)
        text.finish()
        return text.text


def _whole_characters(decode: Callable[[list[int]], str], tokens: Sequence[int]) -> list[int]:
    """The fewest last tokens that begin with a whole character."""
    for count in range(1, min(len(tokens), FEW) + 1):
        if REPLACEMENT not in decode(list(tokens[-count:])):
            return list(tokens[-count:])
    return []


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
