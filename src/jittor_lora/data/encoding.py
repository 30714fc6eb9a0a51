"""The one place where texts become token ids: training, evaluation and generation all come through here.

A prompt has the ids of its whole text, and so has a prompt with its completion. What several texts share is found in
the ids: a token may reach across any place at which a text is put together.
"""

from __future__ import annotations

from typing import Iterable, NamedTuple, Optional, Protocol, Sequence

from jittor_lora.data.template import Template


class TokenizerLike(Protocol):
    """What is needed of a tokenizer; see `formats.tokenizer.Tokenizer`. As it stands here: one that puts nothing before
    a text, `eos_id` after it, and of whose tokens none reaches from one part of a text into the next."""

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
        prefix, prompt: what the prompt may share with others, and the rest of it.
        completion: empty where there is nothing to learn.
        within_token: does the completion begin within a token of the prompt?
    """

    prefix: list[int]
    prompt: list[int]
    completion: list[int]
    within_token: bool = False

    @property
    def tokens(self) -> int:
        return len(self.prefix) + len(self.prompt) + len(self.completion)


class Encoder:
    """Encodes what a template makes of a question."""

    def __init__(self, tokenizer: TokenizerLike, template: Template | None = None):
        self.tokenizer = tokenizer
        self.template = template or Template()
        # Questions of one context come one after the other, and their prefix is most of the text.
        self._last_prefix: tuple[str | None, list[int]] = (None, [])

    def prompt(self, context: str, question: str) -> tuple[list[int], list[int]]:
        """Token ids of (what questions about this context may share, the rest of the prompt)."""
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

        Where a token reaches from the prompt into the answer, all of it is learnt.
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
        """Of each completion the token ids of (the prompt before it, the completion with its end).

        The former are `ids`, those of the prompt, unless a token reaches from it into the completion: that token then
        belongs to the latter.
        """
        found = []
        for whole in self.tokenizer.extend(prompt, ids, texts):
            cut = common(ids, whole)
            found.append((whole[:cut], self.tokenizer.end(whole)[cut:]))
        return found

    def answers(self, texts: Sequence[str]) -> list[list[int] | None]:
        """Token ids of answers in the template, without their end; None where a token reaches into one from before.

        What follows a token's end does not depend on what stands before it, so the template's last words do for the
        prompt, or the end of a question where there are none.
        """
        before = self.template.end_of_prompt or "?"
        ids = self.tokenizer.begin(before)
        whole = self.tokenizer.extend(before, ids, map(self.template.completion_text, texts))
        return [found[len(ids) :] if found[: len(ids)] == ids else None for found in whole]


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of ids with which both begin."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(i for i in range(most) if first[i] != second[i])


def shared(prompts: Sequence[tuple[list[int], list[int]]]) -> tuple[list[int], list[list[int]]]:
    """(the prefix of all, the rest of each) of prompts as (prefix, rest), whose prefixes begin a common text."""
    cut = min(len(prefix) for prefix, _ in prompts)
    return prompts[0][0][:cut], [prefix[cut:] + rest for prefix, rest in prompts]
