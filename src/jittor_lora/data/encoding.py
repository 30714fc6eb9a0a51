"""The one place where texts become token ids, for training, evaluation and generation alike.

A prompt has the ids of its whole text, and so has a prompt with its completion. Shared prefixes are found by comparing
ids: a token may span any boundary at which a text is put together.
"""

from __future__ import annotations

from typing import Iterable, NamedTuple, Optional, Protocol, Sequence

from jittor_lora.data.template import Template


class TokenizerLike(Protocol):
    """The interface of a tokenizer; see `formats.tokenizer.Tokenizer`. These defaults suit one that puts nothing before
    a text, `eos_id` after it, and whose tokens never span two parts of a text."""

    eos_id: Optional[int]
    opening: Sequence[int] = ()

    def encode(self, text: str) -> list[int]: ...

    def begin(self, text: str) -> list[int]:
        return self.encode(text)

    def extend(self, text: str, ids: Sequence[int], parts: Iterable[str]) -> list[list[int]]:
        return [[*ids, *self.encode(part)] for part in parts]

    def end(self, ids: list[int]) -> list[int]:
        return ids if self.eos_id is None else [*ids, self.eos_id]


class Example(NamedTuple):
    """A prompt and its completion in token ids.

    Attributes:
        prefix, prompt: the part of the prompt that others may share, and the rest.
        completion: empty if there is nothing to learn.
        within_token: whether the completion starts within a token of the prompt.
    """

    prefix: list[int]
    prompt: list[int]
    completion: list[int]
    within_token: bool = False

    @property
    def tokens(self) -> int:
        return len(self.prefix) + len(self.prompt) + len(self.completion)


class Encoder:
    """Encodes questions through a template."""

    def __init__(self, tokenizer: TokenizerLike, template: Template | None = None):
        self.tokenizer = tokenizer
        self.template = template or Template()
        # Questions about one context are consecutive, and their prefix is most of the text.
        self._last_prefix: tuple[str | None, list[int]] = (None, [])

    def prompt(self, context: str, question: str) -> tuple[list[int], list[int]]:
        """Token ids of (the prefix that questions about this context may share, the rest of the prompt)."""
        prefix, branch = self.template.prompt_pieces(context, question)
        if self._last_prefix[0] != prefix:
            self._last_prefix = (prefix, self.tokenizer.begin(prefix))
        shared = self._last_prefix[1]
        ids = self.tokenizer.extend(prefix, shared, [branch])[0]
        cut = common(shared, ids)
        return ids[:cut], ids[cut:]

    def prompts(self, context: str, questions: Iterable[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids of (the prefix that these questions share, the rest of each prompt)."""
        return shared([self.prompt(context, question) for question in questions])

    def example(self, context: str, question: str, answer: str | None) -> Example:
        """A question with its answer, if there is one to learn.

        A token that spans the prompt and the answer is learnt as a whole.
        """
        prefix, branch = self.prompt(context, question)
        if answer is None:
            return Example(prefix, branch, [])
        text = "".join(self.template.prompt_pieces(context, question))
        ids, completion = self.completions(text, prefix + branch, [self.template.completion_text(answer)])[0]
        cut = min(len(prefix), len(ids))
        return Example(ids[:cut], ids[cut:], completion, len(ids) < len(prefix) + len(branch))

    def plain_prompt(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt without a template: (all but the last, the last); both empty for an empty text."""
        ids = self.tokenizer.begin(text) if text else []
        return ids[:-1], ids[-1:]

    def completions(self, prompt: str, ids: list[int], texts: Iterable[str]) -> list[tuple[list[int], list[int]]]:
        """Per completion, the token ids of (the prompt before it, the completion with its end).

        The former are the prompt's `ids`, unless a token spans the prompt and the completion: that token then belongs
        to the latter.
        """
        found = []
        for whole in self.tokenizer.extend(prompt, ids, texts):
            cut = common(ids, whole)
            found.append((whole[:cut], self.tokenizer.end(whole)[cut:]))
        return found

    def answers(self, texts: Sequence[str]) -> list[list[int] | None]:
        """Token ids of answers in the template, without end of text; None if a token spans the prompt and the answer.

        Text after a token boundary encodes independently of the text before it, so the template's last words can stand
        for the prompt, or without any, the end of a question.
        """
        before = self.template.end_of_prompt or "?"
        ids = self.tokenizer.begin(before)
        whole = self.tokenizer.extend(before, ids, map(self.template.completion_text, texts))
        return [found[len(ids) :] if found[: len(ids)] == ids else None for found in whole]


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix of two lists of ids."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(i for i in range(most) if first[i] != second[i])


def shared(prompts: Sequence[tuple[list[int], list[int]]]) -> tuple[list[int], list[list[int]]]:
    """(the common prefix, the rest of each) of prompts as (prefix, rest), whose prefixes start the same text."""
    cut = min(len(prefix) for prefix, _ in prompts)
    return prompts[0][0][:cut], [prefix[cut:] + rest for prefix, rest in prompts]
