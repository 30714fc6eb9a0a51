"""A `Generation` as the engine works on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional, Union

import numpy as np

from jittor_lora.inference.continuation import Continuation
from jittor_lora.inference.prompt_rows import PromptRows
from jittor_lora.inference.reader import Reader
from jittor_lora.inference.sampling import Sampler
from jittor_lora.inference.texts import Branch, Texts, limit_of
from jittor_lora.model.config import ModelConfig
from jittor_lora.serving.compute.jobs import Done, End, Event, Generation, Piece, PromptTokens, Token
from jittor_lora.serving.compute.likeliest import scored_tokens


class Generating:
    """The works of a generation, and the events they lead to.

    Args:
        batch_size: most texts of a work.
        events: gets each event but the last, `Done`.

    Attributes:
        works: to be opened and advanced.
        left: texts that are not complete.

    Raises:
        UserError: a prompt is empty or too long for the model, or a token is outside the vocabulary.
    """

    def __init__(self, job: Generation, reader: Reader, config: ModelConfig, batch_size: int, events: list[Event]):
        self._job, self._reader, self._batch_size, self._emit = job, reader, batch_size, events.append
        self._texts: list[_Text] = []
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self.works: list[Union[Texts, PromptRows]] = []
        self.left = job.texts
        ends = job.generator.ending_tokens(job.decoding) if job.decoding.sampling.min_new_tokens else ()
        for prefix, prompts in job.groups:
            if job.echo and (len(prompts), len(prompts[0])) != (1, 1):
                raise ValueError("echo: expected groups of one prompt, whose last token is its branch")
            branches = []
            for prompt in prompts:
                limit = limit_of(config, prefix, prompt, job.decoding.max_new_tokens)
                self._prompt_tokens += len(prefix) + len(prompt)
                for _ in range(job.count):
                    index = len(self._texts)
                    self._texts.append(_Text(job.generator.continuation(job.decoding, job.trim, prefix, prompt)))
                    branches.append(Branch(index, prompt, limit, Sampler(job.decoding.sampling, index, ends)))
            self._add(prefix, branches)

    def opened(self, work: Union[Texts, PromptRows], known: int) -> None:
        """A work was opened, and `known` tokens of its prefix need not be read."""
        if isinstance(work, Texts):
            prompts = sum(branch.index % self._job.count == 0 for branch in work.branches)
            self._cached_tokens += max(0, (prompts - 1) * len(work.prefix) + known)

    @property
    def done(self) -> Done:
        return Done(self._prompt_tokens, self._cached_tokens, self._completion_tokens)

    def _add(self, prefix: Sequence[int], branches: Sequence[Branch]) -> None:
        """Make the works of a group, or report what needs none."""
        job, scored = self._job, None
        if job.echo and job.likeliest is not None and prefix:
            scored = _Echo([*prefix, *branches[0].prompt], job.likeliest, [branch.index for branch in branches],
                           self._emit)
        elif job.echo:
            tokens = tuple(map(Token, (*prefix, *branches[0].prompt)))
            for branch in branches:
                self._emit(PromptTokens(branch.index, tokens))
        if job.decoding.max_new_tokens > 0:
            for start in range(0, len(branches), self._batch_size):
                self.works.append(Texts(self._reader, prefix, branches[start : start + self._batch_size], self._chosen,
                                        self._ended, by_logits=job.likeliest is not None, scored=scored))
                scored = None
        elif scored:
            self.works.append(PromptRows(self._reader, prefix, lambda number, logits: self._scored_alone(
                scored, number, logits, branches)))
        else:
            self._end(branches)

    def _scored_alone(self, echo: _Echo, number: int, logits: np.ndarray, branches: Sequence[Branch]) -> None:
        echo(number, logits)
        if echo.complete:
            self._end(branches)

    def _end(self, branches: Sequence[Branch]) -> None:
        for branch in branches:
            self._ended(branch, False)

    def _chosen(self, branch: Branch, token: int, logits: Optional[np.ndarray]) -> bool:
        self._completion_tokens += 1
        text = self._texts[branch.index]
        scored = None
        if self._job.likeliest is not None:
            scored = scored_tokens([token], logits[None], self._job.likeliest)[0]
        piece, tokens = text.add(token, scored)
        if piece or tokens:
            self._emit(Piece(branch.index, piece, tokens))
        return text.done

    def _ended(self, branch: Branch, finished: bool) -> None:
        piece, tokens = self._texts[branch.index].finish()
        if piece or tokens:
            self._emit(Piece(branch.index, piece, tokens))
        self._emit(End(branch.index, "stop" if finished else "length", len(branch.new)))
        self.left -= 1


class _Text:
    """A text with the tokens that spell it; those of a stop text and of the end are left out."""

    def __init__(self, continuation: Continuation):
        self._continuation = continuation
        self._held: list[tuple[int, Token]] = []  # where each starts in the text, and the token

    @property
    def done(self) -> bool:
        return self._continuation.done

    def add(self, token: int, scored: Optional[Token]) -> tuple[str, tuple[Token, ...]]:
        """The text that has become certain, and its tokens if they are scored."""
        start = self._continuation.decoded
        piece = self._continuation.add(token)
        if scored is not None and not (self.done and token in self._continuation.ends):
            self._held.append((start, scored))
        return piece, self._released()

    def finish(self) -> tuple[str, tuple[Token, ...]]:
        """The text that was held back, with its tokens."""
        if self.done:
            return "", ()
        piece = self._continuation.finish()
        tokens, self._held = tuple(token for _, token in self._held), []
        return piece, tokens

    def _released(self) -> tuple[Token, ...]:
        released = self._continuation.released
        tokens = tuple(token for start, token in self._held if start < released)
        self._held = [] if self.done else [held for held in self._held if held[0] >= released]
        return tokens


class _Echo:
    """Scores a prompt's tokens as their logits come, and reports them once they are complete."""

    def __init__(self, tokens: Sequence[int], likeliest: int, indices: Sequence[int], emit: Callable[[Event], None]):
        self._tokens, self._likeliest, self._indices, self._emit = tokens, likeliest, indices, emit
        self._scored = [Token(tokens[0])]

    @property
    def complete(self) -> bool:
        return len(self._scored) == len(self._tokens)

    def __call__(self, number: int, logits: np.ndarray) -> None:
        """The logits (n, V) after n tokens from a number on."""
        following = self._tokens[number + 1 : number + 1 + len(logits)]
        self._scored += scored_tokens(following, logits, self._likeliest)
        if self.complete:
            for index in self._indices:
                self._emit(PromptTokens(index, tuple(self._scored)))
