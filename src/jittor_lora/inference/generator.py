"""Text in, text out: prompts, questions and their continuations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Tuple

import numpy as np

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.conversations import Turn
from jittor_lora.data.encoding import Encoder
from jittor_lora.data.template import Template
from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.continuation import CONTEXT_TOKENS, Continuation
from jittor_lora.inference.extraction import ending_tokens
from jittor_lora.inference.reader import Reader
from jittor_lora.inference.sampling import Sampling

Group = Tuple[Sequence[int], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Decoding:
    """Decoding settings.

    Args:
        max_new_tokens: most tokens per continuation.
        sampling: how each token is chosen.
        stop: a text, or several, each of which ends a continuation and is not part of it; end of text always ends it.
        beams: beam search instead of one token at a time; a beam ends with a token that starts with a stop text.
    """

    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: str | tuple[str, ...] | None = None
    beams: Beams | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if not self.stop else (self.stop,) if isinstance(self.stop, str) else self.stop


class Generator:
    """Generates text with a model and its tokenizer.

    Args:
        model: a `CausalLM`, with or without an adapter.
        tokenizer: a `Tokenizer`.
        template: of questions about a context.
        chat: encodes conversations; without it there are none.
        ensemble: names of adapters that answer together, see `EnsembleReader`; by default the active adapters answer.
    """

    def __init__(self, model, tokenizer, template: Template | None = None, chat: ChatEncoder | None = None,
                 ensemble: Sequence[str] = ()):
        self.model, self.tokenizer, self.chat, self.ensemble = model, tokenizer, chat, tuple(ensemble)
        self.encoder = Encoder(tokenizer, template)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text, or an assistant's turn."""
        return frozenset(self.tokenizer.end_ids) | (self.chat.end_ids if self.chat else frozenset())

    def continue_text(self, prompt: str, decoding: Decoding,
                      on_text: Callable[[str], None] = lambda text: None) -> str:
        """The continuation of `prompt`; `on_text` gets each piece as it becomes certain.

        Raises:
            UserError: the prompt is empty or too long for the model.
        """
        return self.continue_groups(self.groups([(None, prompt)]), decoding, False, lambda _, text: on_text(text))[0]

    def answer(self, context: str, questions: Sequence[str], decoding: Decoding,
               on_text: Callable[[int, str], None] = lambda index, text: None) -> list[str]:
        """The answers to questions about one context, which is read once; leading whitespace is dropped.

        Raises:
            UserError: the prompt is too long for the model.
        """
        return self.continue_groups(self.groups([(context, q) for q in questions]), decoding, True, on_text)

    def groups(self, texts: Sequence[tuple[str | None, str]]) -> list[Group]:
        """Token ids of (None, prompt) or (context, question) pairs.

        Consecutive questions about the same context share it where the template allows.
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

    def chats(self, conversations: Sequence[Sequence[Turn]]) -> list[Group]:
        """Token ids of conversations that an assistant is to continue.

        Raises:
            UserError: the template refuses one.
        """
        prompts = map(self.chat.prompt, conversations)
        return [(prompt[:-1], [prompt[-1:]]) for prompt in prompts]

    def continue_groups(self, groups: Sequence[Group], decoding: Decoding, trim: bool = False,
                        on_text: Callable[[int, str], None] = lambda index, text: None,
                        on_end: Callable[[int], None] = lambda index: None, batch_size: int | None = None,
                        adapters: Sequence[str | None] | None = None,
                        on_null_odds: Callable[[int, float], None] | None = None) -> list[str]:
        """The continuations of prompts given as token ids.

        Args:
            groups: (prefix, branches) pairs: the prompts' common prefix, and the rest of each. Prompts are numbered
                across all groups.
            trim: drop leading whitespace from each continuation.
            on_text: called as on_text(prompt number, piece) when a piece becomes certain.
            on_end: called with the number of a prompt whose continuation is complete.
            batch_size: most prompts that advance together; 64 if None.
            adapters: the adapter name of each group, None for the base alone; by default the ensemble or, without one,
                the active adapters.
            on_null_odds: called as on_null_odds(prompt number, log-odds that the text ends at once); no text does then.
                Not with beams.

        Raises:
            UserError: a prompt is empty or too long for the model, or there is no such adapter.
        """
        if decoding.beams is not None:
            found = self.search(groups, decoding, trim, batch_size, adapters, on_end)
            for index, several in enumerate(found):
                on_text(index, several[0])
            return [several[0] for several in found]
        from jittor_lora.inference.generate import BATCH_SIZE, generate_groups  # imports Jittor
        first = None
        if on_null_odds is not None:
            first_ends = self.ending_tokens(decoding)

            def first(index: int, logits: np.ndarray) -> None:
                on_null_odds(index, null_odds(logits, first_ends))
                logits[first_ends] = -np.inf

        texts = [self.continuation(decoding, trim, prefix, branch)
                 for prefix, branches in groups for branch in branches]

        def end(index: int) -> None:
            on_text(index, texts[index].finish())
            on_end(index)

        generate_groups(self.model, groups, decoding.max_new_tokens, decoding.sampling,
                        finished=lambda index, _: texts[index].done,
                        on_token=lambda index, token: on_text(index, texts[index].add(token)),
                        on_end=end, batch_size=batch_size or BATCH_SIZE,
                        readers=self._readers(len(groups), adapters),
                        ends=self.ending_tokens(decoding) if decoding.sampling.min_new_tokens else (), on_first=first)
        return [text.text for text in texts]

    def continuations(self, groups: Sequence[Group], decoding: Decoding, count: int,
                      trim: bool = False) -> list[list[str]]:
        """`count` continuations of each prompt: the best ones of beam search, or independent samples.

        Raises:
            UserError: as `continue_groups`.
        """
        if decoding.beams is not None:
            return [texts[:count] for texts in self.search(groups, decoding, trim)]
        repeated = [(prefix, [prompt for prompt in prompts for _ in range(count)]) for prefix, prompts in groups]
        texts = self.continue_groups(repeated, decoding, trim)
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def search(self, groups: Sequence[Group], decoding: Decoding, trim: bool = False, batch_size: int | None = None,
               adapters: Sequence[str | None] | None = None,
               on_end: Callable[[int], None] = lambda index: None) -> list[list[str]]:
        """The texts found by beam search for each prompt, best first; arguments as for `continue_groups`.

        Raises:
            UserError: as there, or the tokenizer has no end-of-text token.
        """
        from jittor_lora.inference.beam import BATCH_SIZE, search_groups  # imports Jittor
        readers = self._readers(len(groups), adapters)
        starts = [0, *accumulate(len(prompts) for _, prompts in groups)]
        found: dict[int, list[str]] = {}
        for reader in {id(reader): reader for reader in readers}.values():
            chosen = [i for i, other in enumerate(readers) if other is reader]
            numbers = [n for i in chosen for n in range(starts[i], starts[i + 1])]
            texts = search_groups(self.model, [groups[i] for i in chosen], decoding.max_new_tokens, decoding.beams,
                                  self.ending_tokens(decoding), decoding.sampling, batch_size or BATCH_SIZE,
                                  lambda index, numbers=numbers: on_end(numbers[index]), reader)
            prompts = [(groups[i][0], branch) for i in chosen for branch in groups[i][1]]
            found.update((n, [self._text(hypothesis.tokens, decoding, trim, *prompt) for hypothesis in several])
                         for n, prompt, several in zip(numbers, prompts, texts))
        return [found[n] for n in range(starts[-1])]

    def ending_tokens(self, decoding: Decoding) -> list[int]:
        """The tokens that end a text, those that start with a stop text included.

        Raises:
            UserError: there is none.
        """
        found = ending_tokens(self.tokenizer, decoding.stops, self.model.config.vocab_size)
        return [*found, *sorted(self.ends - set(found))]

    def continuation(self, decoding: Decoding, trim: bool, prefix: Sequence[int], prompt: Sequence[int]
                     ) -> Continuation:
        """What turns the tokens after a prompt into text."""
        before = [*prefix[-CONTEXT_TOKENS:], *prompt]
        return Continuation(self.tokenizer.decode, self.ends, decoding.stops, trim, before)

    def _readers(self, count: int, adapters: Sequence[str | None] | None) -> list[Reader]:
        """The reader of each of `count` groups."""
        from jittor_lora.inference.readers import ensemble_of, reader_of, readers_of  # imports Jittor
        if adapters is not None:
            return readers_of(self.model, adapters)
        return [ensemble_of(self.model, self.ensemble) if self.ensemble else reader_of(self.model)] * count

    def _text(self, tokens: Sequence[int], decoding: Decoding, trim: bool, prefix: Sequence[int],
              prompt: Sequence[int]) -> str:
        text = self.continuation(decoding, trim, prefix, prompt)
        for token in tokens:
            text.add(token)
        text.finish()
        return text.text


def null_odds(logits: np.ndarray, ends: Sequence[int]) -> float:
    """The log-odds that a text ends now, given the logits (V,) of its next token: log p - log(1 - p), in nats, where p
    is the probability of all end tokens together."""
    others = np.ones(len(logits), bool)
    others[ends] = False
    one, other = (np.logaddexp.reduce(logits[chosen].astype(np.float64)) for chosen in (~others, others))
    return float(one - other)
