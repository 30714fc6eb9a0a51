"""From a question about a context to the span of the context that the model holds likeliest as its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Tuple

from jittor_lora.data.encoding import Encoder
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.inference.span_tree import MAX_WORDS, span_tree

Group = Tuple[Sequence[int], Sequence[Sequence[int]], str]


class Extract(NamedTuple):
    """A span of a context, `context[start:end]`, and the log-probability in nats of it with its end as the answer.

    Where a context has no span, text "" from 0 to 0 with -inf.
    """

    text: str
    start: int
    end: int
    log_probability: float


class Extractor:
    """A model with its tokenizer, as one that marks answers in contexts: it cannot write what is not there.

    An answer ends at end of text or at the end of the line: the end's probability is that of all tokens together that
    end it, see `ending_tokens`.

    Args:
        model: a `CausalLM`, with or without an adapter.
        tokenizer: a `Tokenizer`.
    """

    def __init__(self, model, tokenizer, template: Template | None = None):
        self.model, self.tokenizer = model, tokenizer
        self.encoder = Encoder(tokenizer, template)
        self._ends = ending_tokens(tokenizer, "\n", model.config.vocab_size)

    def answer(self, context: str, questions: Sequence[str], max_tokens: int = 32,
               max_words: int = MAX_WORDS) -> list[Extract]:
        """The likeliest spans as answers to questions about one context.

        Raises:
            UserError: the prompt is too long for the model, or tokens reach from it into answers.
        """
        prompts = [self.encoder.prompt(context, question) for question in questions]
        return self.extract([(prefix, [branch], context) for prefix, branch in prompts], max_tokens, max_words)

    def extract(self, groups: Iterable[Group], max_tokens: int = 32, max_words: int = MAX_WORDS,
                rows: int | None = None, on_end: Callable[[int], None] = lambda index: None) -> list[Extract]:
        """The likeliest span after each prompt.

        Args:
            groups: (prefix, prompts, context) each: token ids that the prompts start with, how each of them goes on,
                and the context that they ask about.
            max_tokens, max_words: longer spans are left out.
            rows: most beginnings of spans that are read at a time; 64 if None.
            on_end: called with the number of a prompt when its span is found.

        Raises:
            UserError: a prompt is empty or too long for the model.
        """
        from jittor_lora.inference.span_search import ROWS, SpanGroup, best_spans  # brings Jittor
        contexts: list[str] = []

        def trees() -> Iterator[SpanGroup]:
            for prefix, prompts, context in groups:
                contexts.extend([context] * len(prompts))
                yield SpanGroup(prefix, prompts, span_tree(context, self._completions, max_tokens, max_words))

        found = best_spans(self.model, trees(), self._ends, rows or ROWS, on_end)
        spans = [(span or (0, 0), score) for span, score in found]
        return [Extract(context[start:end], start, end, score)
                for context, ((start, end), score) in zip(contexts, spans)]

    def _completions(self, answers: list[str]) -> list[list[int]]:
        found = self.encoder.answers(answers)
        if None in found:
            raise UserError(f"{self.tokenizer.origin}: a token reaches from the template's last words into the answer "
                            f"{answers[found.index(None)]!r}, so answers cannot be compared. Let the template end with "
                            "a space or a line break before {answer}.")
        return found


def ending_tokens(tokenizer, stop: str | None, vocab_size: int) -> list[int]:
    """The tokens at which a text ends that goes to `stop`: end of text, and those that begin with the stop text.

    Args:
        vocab_size: of the model; tokens beyond it are left out.

    Raises:
        UserError: there is none.
    """
    ends = {token for token in tokenizer.end_ids if token < vocab_size}
    if stop:
        count = min(tokenizer.vocab_size, vocab_size)
        ends.update(token for token in range(count) if tokenizer.decode([token]).startswith(stop))
    if not ends:
        raise UserError(f"{tokenizer.origin}: no token for the end of text, and none that begins with {stop!r}; "
                        "nothing could end a text.")
    return sorted(ends)
