"""An `Extraction` as the engine works on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from jittor_lora.errors import UserError
from jittor_lora.inference.extraction import Candidates, Extract, extracts, most_expected
from jittor_lora.inference.reader import Reader
from jittor_lora.inference.span_search import SpanSearch
from jittor_lora.inference.texts import limit_of
from jittor_lora.model.config import ModelConfig
from jittor_lora.serving.compute.jobs import Done, Event, Extraction, Spans


class Extracting:
    """The searches of an extraction; attributes and errors as those of `Generating`."""

    def __init__(self, job: Extraction, reader: Reader, config: ModelConfig, events: list[Event]):
        self._emit, self._prompt_tokens, self._cached_tokens = events.append, 0, 0
        self.works: list[SpanSearch] = []
        for context, group in zip(job.contexts, job.groups):
            deepest = group.tree.deepest()
            for prompt in group.prompts:
                if limit_of(config, group.prefix, prompt, deepest + 1) <= deepest:
                    raise UserError(f"The prompt has {len(group.prefix) + len(prompt)} tokens and up to {deepest} may "
                                    f"follow; the model takes at most {config.max_positions}. Shorten it.")
                whole = [*group.prefix, *prompt]
                self._prompt_tokens += len(whole)
                self.works.append(_Answering(reader, len(self.works), whole, group.tree, job.ends, job.count, context,
                                             job.candidates, job.smoothing, self._answered))
        self.left = len(self.works)

    def opened(self, work: SpanSearch, known: int) -> None:
        self._cached_tokens += known

    @property
    def done(self) -> Done:
        return Done(self._prompt_tokens, self._cached_tokens, 0)

    def _answered(self, search: _Answering) -> None:
        self._emit(Spans(search.index, tuple(search.best)))
        self.left -= 1


class _Answering(SpanSearch):
    """A search that says when it is done."""

    def __init__(self, reader, index, prompt, tree, ends, count, context: str, candidates: Optional[Candidates],
                 smoothing: float, answered: Callable[[_Answering], None]):
        sought = (count, 0.0) if candidates is None else (candidates.count, candidates.least_share)
        super().__init__(reader, index, prompt, tree, ends, *sought, smoothing)
        self._wanted, self._context, self._candidates, self._answered = count, context, candidates, answered

    @property
    def best(self) -> list[Extract]:
        found = extracts(self._context, self.found.spans, self.found.empty)
        return (most_expected(found, self._candidates) if self._candidates else found)[:self._wanted]

    def take(self, results) -> None:
        super().take(results)
        if self.complete:
            self._answered(self)
