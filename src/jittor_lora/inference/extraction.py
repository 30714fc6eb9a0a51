"""Extractive answers: the span of the context that the model finds likeliest, or of which it expects the highest F1."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Optional, Tuple

import numpy as np

from jittor_lora.data.encoding import Encoder
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.evaluation.minimum_risk import by_expected_f1
from jittor_lora.inference.span_tree import span_tree
from jittor_lora.inference.token_tree import Node

Group = Tuple[Sequence[int], Sequence[Sequence[int]], str]
LEAST_SHARE = 0.01  # candidates for the highest expected F1 are at least this share as probable as the likeliest span


class Candidates(NamedTuple):
    """The spans of which the one with the highest expected F1 is chosen: the `count` likeliest, of those whose
    probability is more than `least_share` of the likeliest one's.

    Args:
        scoring: the rule of F1, see `scoring.RULES`.
        temperature: probabilities count to the power of 1 / temperature (Guo et al. 2017, "On Calibration of Modern
            Neural Networks", section 4.2), since fine-tuned models are too sure of the likeliest span.
    """

    count: int
    scoring: str
    temperature: float
    least_share: float = LEAST_SHARE


class Extract(NamedTuple):
    """The span `context[start:end]`, and its log-probability as the complete answer, in nats; besides it that of the
    empty answer, which ends at once.

    A context without spans gives "" at (0, 0) with -inf.

    Attributes:
        expected_f1: of a candidate, given that one of the candidates is the answer, at their temperature; 0 to 1.
        candidates_log_probability: that one of the candidates is.
    """

    text: str
    start: int
    end: int
    log_probability: float
    empty_log_probability: float
    expected_f1: Optional[float] = None
    candidates_log_probability: Optional[float] = None

    @property
    def null_odds(self) -> float:
        """By how much the empty answer is likelier than the span, in nats; finite. Of a span chosen by its expected F1,
        by how much the empty answer's own is higher: the logarithm of their ratio."""
        span = self.log_probability
        if self.expected_f1 is not None:
            span = self.candidates_log_probability + (math.log(self.expected_f1) if self.expected_f1 else -math.inf)
        return finite(self.empty_log_probability - span)


class Extractor:
    """Extracts answers with a model and its tokenizer: every answer is a span of the context.

    An answer ends at end of text or at the end of the line; the probability of the end is the sum over the tokens that
    end it (see `ending_tokens`).

    Args:
        model: a `CausalLM`, with or without an adapter.
        tokenizer: a `Tokenizer`.
        template: of questions about a context.
        ensemble: names of adapters that answer together, see `EnsembleReader`; by default the active adapters answer.
        smoothing: of the labels that the model has learnt; probabilities are without it, see `before_smoothing`.
    """

    def __init__(self, model, tokenizer, template: Template | None = None, ensemble: Sequence[str] = (),
                 smoothing: float = 0.0):
        self.model, self.tokenizer, self.ensemble, self.smoothing = model, tokenizer, tuple(ensemble), smoothing
        self.encoder = Encoder(tokenizer, template)
        self.ends = ending_tokens(tokenizer, ("\n",), model.config.vocab_size)

    def answer(self, context: str, questions: Sequence[str], max_tokens: int = 32,
               max_words: int | None = None) -> list[Extract]:
        """The likeliest answers to questions about one context.

        Raises:
            UserError: the prompt is too long for the model, or a token spans the end of the prompt and the start of an
                answer.
        """
        prompts = [self.encoder.prompt(context, question) for question in questions]
        return self.extract([(prefix, [branch], context) for prefix, branch in prompts], max_tokens, max_words)

    def extract(self, groups: Iterable[Group], max_tokens: int = 32, max_words: int | None = None,
                batch_size: int | None = None, on_end: Callable[[int], None] = lambda index: None,
                candidates: Candidates | None = None) -> list[Extract]:
        """The likeliest span for each prompt, or of some candidates the one with the highest expected F1.

        Args:
            groups: (prefix, prompts, context): the prompts' common prefix and the rest of each, as token ids, and the
                context they ask about.
            max_tokens, max_words: longer spans are skipped; see `spans_of` for the default.
            batch_size: most tree nodes read together; 64 if None.
            on_end: called with the number of a prompt when its span is found.

        Raises:
            UserError: a prompt is empty or too long for the model.
        """
        count, share = (1, 0.0) if candidates is None else (candidates.count, candidates.least_share)
        found = self.extract_several(groups, count, max_tokens, max_words, batch_size, on_end, share)
        return [several[0] if candidates is None else most_expected(several, candidates)[0] for several in found]

    def extract_several(self, groups: Iterable[Group], count: int, max_tokens: int = 32, max_words: int | None = None,
                        batch_size: int | None = None, on_end: Callable[[int], None] = lambda index: None,
                        least_share: float = 0.0) -> list[list[Extract]]:
        """The `count` likeliest spans for each prompt, likeliest first, as for `extract`; fewer where the context has
        fewer, or fewer above `least_share` (see `best_spans`), but at least one."""
        from jittor_lora.inference.readers import ensemble_of, reader_of  # these import Jittor
        from jittor_lora.inference.span_search import BATCH_SIZE, SpanGroup, best_spans
        reader = ensemble_of(self.model, self.ensemble) if self.ensemble else reader_of(self.model)
        contexts: list[str] = []

        def trees() -> Iterator[SpanGroup]:
            for prefix, prompts, context in groups:
                contexts.extend([context] * len(prompts))
                yield SpanGroup(prefix, prompts, self.tree(context, max_tokens, max_words))

        found = best_spans(self.model, trees(), self.ends, batch_size or BATCH_SIZE, on_end, count, least_share,
                           reader, self.smoothing)
        return [extracts(context, one.spans, one.empty) for context, one in zip(contexts, found)]

    def tree(self, context: str, max_tokens: int = 32, max_words: int | None = None) -> Node:
        """The spans of a context, see `span_tree`."""
        return span_tree(context, self._completions, max_tokens, max_words)

    def _completions(self, answers: list[str]) -> list[list[int]]:
        found = self.encoder.answers(answers)
        if None in found:
            raise UserError(f"{self.tokenizer.origin}: a token spans the end of the template and the start of the "
                            f"answer {answers[found.index(None)]!r}, so answers cannot be compared. End the template "
                            "with a space or a line break before {answer}.")
        return found


def extracts(context: str, spans: Sequence[tuple[tuple[int, int], float]], empty: float) -> list[Extract]:
    """The spans ((start, end), score) of a context as `Extract`s; one without text if there are none.

    Args:
        empty: the score of the empty answer.
    """
    return [Extract(context[start:end], start, end, score, empty)
            for (start, end), score in spans or [((0, 0), -math.inf)]]


def finite(odds: float) -> float:
    """The nearest number that is not infinite."""
    return max(min(odds, sys.float_info.max), -sys.float_info.max)


def most_expected(spans: Sequence[Extract], how: Candidates) -> list[Extract]:
    """The candidates, given likeliest first, by their expected F1, highest first; equal ones likeliest first."""
    logs = np.array([span.log_probability for span in spans])
    if not np.isfinite(logs[0]):
        return list(spans)
    weights = np.exp((logs - logs[0]) / how.temperature)
    total = float(np.logaddexp.reduce(logs))
    return [spans[index]._replace(expected_f1=expected, candidates_log_probability=total)
            for index, expected in by_expected_f1([span.text for span in spans], weights, how.scoring)]


def ending_tokens(tokenizer, stops: Sequence[str], vocab_size: int) -> list[int]:
    """The tokens that end a text: end of text, and those that start with a stop text.

    Args:
        vocab_size: of the model; tokens beyond it are ignored.

    Raises:
        UserError: there is no such token.
    """
    ends = {token for token in tokenizer.end_ids if token < vocab_size}
    if stops:
        count = min(tokenizer.vocab_size, vocab_size)
        ends.update(token for token in range(count) if tokenizer.decode([token]).startswith(tuple(stops)))
    if not ends:
        raise UserError(f"{tokenizer.origin}: no end-of-text token, and none that starts with "
                        f"{' or '.join(map(repr, stops)) or 'a stop text'}; nothing could end a text.")
    return sorted(ends)
