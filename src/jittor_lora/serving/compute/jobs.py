"""What the engine is asked to do, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

from jittor_lora.inference.extraction import Candidates, Extract, Extractor
from jittor_lora.inference.generator import Decoding, Generator, Group
from jittor_lora.inference.span_search import SpanGroup


@dataclass(frozen=True)
class Generation:
    """Prompts to continue. Texts are numbered prompt by prompt, `count` for each.

    Args:
        generator: its tokenizer and ends of texts.
        adapter: name; None for the base alone.
        groups: token ids, from the generator's `groups` or `chats`.
        decoding: without beams; text i draws from the random stream (seed, i).
        count: continuations of each prompt.
        trim: drop whitespace before each continuation.
        likeliest: report the log-probability of each token, and those of this many likeliest; None for neither.
        echo: report the prompt's tokens first, with their log-probabilities if `likeliest` is given. Each group is then
            one prompt, whose last token is its branch, as `Generator.groups` makes of texts without a context.
    """

    generator: Generator
    adapter: Optional[str]
    groups: Sequence[Group]
    decoding: Decoding
    count: int = 1
    trim: bool = False
    likeliest: Optional[int] = None
    echo: bool = False

    @property
    def texts(self) -> int:
        """Their number."""
        return self.count * sum(len(prompts) for _, prompts in self.groups)


@dataclass(frozen=True)
class Extraction:
    """Questions to answer with the best spans of a context, numbered across all groups.

    Args:
        adapter: name; None for the base alone.
        contexts: of each group.
        groups: prompts with the tree of a context's spans.
        ends: tokens that end an answer.
        count: spans per question, best first.
        candidates: of which the best are those with the highest expected F1; None for the likeliest spans.
        smoothing: see `Extractor`.
    """

    adapter: Optional[str]
    contexts: Sequence[str]
    groups: Sequence[SpanGroup]
    ends: Sequence[int]
    count: int = 1
    candidates: Optional[Candidates] = None
    smoothing: float = 0.0

    @classmethod
    def of(cls, extractor: Extractor, adapter: Optional[str],
           groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]], str]], count: int = 1, max_tokens: int = 32,
           max_words: Optional[int] = None, candidates: Optional[Candidates] = None) -> Extraction:
        """From token ids, (prefix, prompts, context) with the first two as from `Generator.groups`. Encodes all spans
        of each context, which takes a while.

        Args:
            max_tokens, max_words: longer spans are skipped; see `spans_of`.

        Raises:
            UserError: a token spans the end of the prompt and the start of an answer.
        """
        trees = {context: extractor.tree(context, max_tokens, max_words) for _, _, context in groups}
        return cls(adapter, [context for _, _, context in groups],
                   [SpanGroup(prefix, prompts, trees[context]) for prefix, prompts, context in groups],
                   extractor.ends, count, candidates, extractor.smoothing)

    @property
    def texts(self) -> int:
        """The number of questions."""
        return sum(len(group.prompts) for group in self.groups)


Job = Union[Generation, Extraction]


class Token(NamedTuple):
    """A token of a prompt or a text.

    Args:
        log_probability: in nats, of the model's distribution before temperature and truncation; None for a prompt's
            first token, and where it was not asked for.
        likeliest: (token, log-probability) of the likeliest tokens at its place, likeliest first.
    """

    id: int
    log_probability: Optional[float] = None
    likeliest: tuple[tuple[int, float], ...] = ()


class PromptTokens(NamedTuple):
    """The tokens of a text's prompt; before its first piece, if `echo`."""

    index: int
    tokens: tuple[Token, ...]


class Piece(NamedTuple):
    """A part of text `index` that has become certain, and, if `likeliest`, its tokens."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()


class End(NamedTuple):
    """Text `index` is complete.

    Args:
        reason: "stop" at end of text or a stop text, "length" at the most tokens, or at the model's last position.
        tokens: that were generated, the end included.
    """

    index: int
    reason: str
    tokens: int


class Spans(NamedTuple):
    """The answer to question `index` of an `Extraction`: its best spans, fewer where the context has fewer."""

    index: int
    spans: tuple[Extract, ...]


class Done(NamedTuple):
    """The job is complete; nothing follows.

    Args:
        prompt_tokens: a shared prefix counts once for each of its prompts.
        cached_tokens: those of them that were not read, as the engine had their keys and values.
        completion_tokens: of all texts.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Failed(NamedTuple):
    """The job ended with an error; nothing follows.

    Args:
        message: for the user.
        fault: "request" for one that another request would not have (a prompt too long), "server" for one of the model
            or the machine, "timeout" where the time for a request was over, "stopping" where the server stops.
    """

    message: str
    fault: str


Event = Union[PromptTokens, Piece, End, Spans, Done, Failed]
Deliver = Callable[[Sequence[Event]], None]


class Busy(Exception):
    """Too many jobs wait.

    Args:
        seconds: after which trying again makes sense.
    """

    def __init__(self, seconds: int):
        super().__init__(seconds)
        self.seconds = seconds


class Stopping(Exception):
    """The engine takes no more jobs."""
