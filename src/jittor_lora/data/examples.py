"""From examples as their files have them to tokenised ones, fitted into the model's context length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Union

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.chat_faults import ChatFaults
from jittor_lora.data.chat_groups import ChatFitting
from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.encoding import Encoder, Example, TokenizerLike, shared
from jittor_lora.data.groups import Branch, TokenGroup
from jittor_lora.data.jsonl import Prompt, PromptData
from jittor_lora.data.length_report import LengthReport
from jittor_lora.data.squad import Answer, Paragraph, Question, SquadData
from jittor_lora.data.template import Template
from jittor_lora.data.window import Words
from jittor_lora.errors import UserError

Data = Union[SquadData, PromptData, ConversationData]


def training_groups(data: Data, tokenizer: TokenizerLike, template: Template, limit: int,
                    chat: ChatEncoder | None = None, all_references: bool = False
                    ) -> tuple[list[TokenGroup], LengthReport]:
    """Examples to learn from: every completion is complete and closed by end of text.

    A SQuAD question that is too long keeps the part of its context around the answer that fits; a plain prompt keeps
    its end; a conversation loses its last turns. Examples that do not fit even so are dropped.

    Args:
        limit: the most tokens of an example: the smaller of the model's positions and the user's setting.
        chat: encodes conversations; needed for these alone.
        all_references: a question with several distinct reference answers has them all, each weighted by its share,
            instead of the most frequent one. Where a context is cut, those that are not in the rest are left out.

    Raises:
        UserError: no example is left, or the data have no reference answers.
    """
    if all_references and not isinstance(data, SquadData):
        raise UserError(f"{data.path}: references: expected most-frequent, as these are not questions with reference "
                        "answers; every completion here is an example of its own.")
    return _groups(data, tokenizer, template, LengthReport(limit), chat, True, all_references)


def prompt_groups(data: Data, tokenizer: TokenizerLike, template: Template, limit: int,
                  chat: ChatEncoder | None = None) -> tuple[list[TokenGroup], LengthReport]:
    """Prompts to continue; completions are empty.

    A SQuAD context that is too long is cut at its end; a plain prompt keeps its end; a conversation loses its first
    exchanges. JSON Lines rows with the same prompt are one prompt.

    Args:
        limit: the most tokens of a prompt: the model's positions minus the tokens to generate.
        chat: encodes conversations; needed for these alone.

    Raises:
        UserError: no prompt is left.
    """
    return _groups(data, tokenizer, template, LengthReport(limit), chat, False)


def _groups(data: Data, tokenizer: TokenizerLike, template: Template, report: LengthReport, chat: ChatEncoder | None,
            learning: bool, all_references: bool = False) -> tuple[list[TokenGroup], LengthReport]:
    if isinstance(data, ConversationData):
        chats = ChatFitting(chat, report)
        found = map(chats.learnt if learning else chats.asked, data.conversations)
    else:
        fitting = _Fitting(Encoder(tokenizer, template), report, learning, all_references)
        found = map(fitting.paragraph, data.paragraphs) if isinstance(data, SquadData) else \
            map(fitting.prompt, data.prompts)
    groups = list(itertools.chain.from_iterable(found))
    if not groups and report.faults:
        raise ChatFaults(report.faults)
    if not groups:
        raise UserError(
            f"{data.path}: none of its {report.examples:,} examples fits into {report.limit} tokens "
            f"(the longest has {report.longest[0]:,}). Raise the limit or shorten the texts."
        )
    return groups, report


class _Fitting:
    """Tokenises examples, fits them into the limit and keeps the report.

    Args:
        learning: with completions, and windows around answers; otherwise prompts alone, and contexts cut at the end.
        all_references: see `training_groups`.
    """

    def __init__(self, encoder: Encoder, report: LengthReport, learning: bool, all_references: bool = False):
        self.encoder, self.report, self.learning, self.all_references = encoder, report, learning, all_references

    def paragraph(self, paragraph: Paragraph) -> list[TokenGroup]:
        """One group, plus one per shortened context."""
        found: dict[str, list[tuple[str, list[tuple[Example, float]]]]] = {}
        words = None
        for question in paragraph.questions:
            answers = question.distinct_answers() if self.learning else [(None, 1.0)]
            (answer, share), *others = answers if self.all_references else answers[:1]
            context, example = paragraph.context, self._example(paragraph.context, question, answer)
            if self._too_long(question.id, example.tokens):
                words = words or Words(paragraph.context, self.encoder.tokenizer)
                longest = max((len(self._example(context, question, other).completion) for other, _ in others),
                              default=0)
                cut = self._cut(words, question, answer, max(longest - len(example.completion), 0))
                if cut is None:
                    continue
                context, example = cut
            if self.learning and not example.completion:
                self.report.dropped[question.id] = "there is no answer, and no end of text to learn that by"
                continue
            examples = [(example, share), *self._others(context, question, others)]
            self.report.several += len(examples) > 1
            self.report.within_token += any(one.within_token for one, _ in examples)
            # Without a common text, each question is a group; otherwise their tokens show what they share.
            key = self.encoder.template.prompt_pieces(context, "")[0] or question.id
            found.setdefault(key, []).append((question.id, examples))
        return [_group(examples) for examples in found.values()]

    def prompt(self, prompt: Prompt) -> list[TokenGroup]:
        """One group, plus one per example whose prompt was cut or has other tokens before its completion."""
        prefix, last = self.encoder.plain_prompt(prompt.text)
        ids = prefix + last
        if self.learning:
            pairs = self.encoder.completions(prompt.text, ids, [c.text for c in prompt.completions])
            examples = [(c.id, *pair) for c, pair in zip(prompt.completions, pairs)]
        else:
            examples = [(prompt.id, ids, [])]
        whole, others = [], []
        opening = list(self.encoder.tokenizer.opening)
        for name, before, completion in examples:
            too_long = self._too_long(name, len(before) + len(completion))
            room = self.report.limit - len(completion)
            if not before:
                self.report.dropped[name] = "the prompt has no tokens"
            elif not too_long and before == ids:
                whole.append(Branch(name, last, completion))
            elif not too_long:
                others.append(TokenGroup(before[:-1], [Branch(name, before[-1:], completion)]))
            elif room <= len(opening):
                self.report.dropped[name] = "the completion alone is longer than the limit"
            else:
                self.report.cut.append(name)
                kept = opening + before[len(before) - room + len(opening) :]
                others.append(TokenGroup(kept[:-1], [Branch(name, kept[-1:], completion)]))
            self.report.within_token += before != ids
        return ([TokenGroup(prefix, whole)] if whole else []) + others

    def _too_long(self, name: str, tokens: int) -> bool:
        self.report.examples += 1
        self.report.longest = max(self.report.longest, (tokens, name), key=lambda longest: longest[0])
        return tokens > self.report.limit

    def _example(self, context: str, question: Question, answer: Answer | None) -> Example:
        return self.encoder.example(context, question.text, answer.text if answer else None)

    def _others(self, context: str, question: Question, answers: Sequence[tuple[Answer, float]]
                ) -> list[tuple[Example, float]]:
        """The examples with these answers that are in the context and fit, with their shares."""
        examples = [(self._example(context, question, answer), share) for answer, share in answers
                    if answer.text in context or answer.start < 0]
        return [(example, share) for example, share in examples if example.tokens <= self.report.limit]

    def _cut(self, words: Words, question: Question, answer: Answer | None,
             room: int) -> tuple[str, Example] | None:
        """As much of the context as fits, and the example; None if that is too little.

        Words are counted one by one, so the first guess may be some tokens too long; it is then shortened.

        Args:
            room: tokens to leave for longer answers, if the context can be cut that far.
        """

        def span(budget: int) -> tuple[int, int]:
            if answer and answer.start >= 0:
                return words.around(answer.start, answer.start + len(answer.text), budget)
            return words.head(budget)

        least, budget = span(0), min(self.report.limit, words.costs[-1])
        while True:
            kept = span(budget)
            context = words.context[slice(*kept)]
            example = self._example(context, question, answer)
            excess = example.tokens + room - self.report.limit
            if excess <= 0 or kept == least and excess <= room:
                (self.report.windowed if answer and answer.text else self.report.cut).append(question.id)
                return context, example
            if kept == least:
                what = "the question with its answer" if answer else "the question"
                self.report.dropped[question.id] = f"{what} alone is longer than the limit"
                return None
            budget -= excess


def _group(questions: list[tuple[str, list[tuple[Example, float]]]]) -> TokenGroup:
    """
    Args:
        questions: their ids, and their examples with the shares of these, which become weights with the sum 1.
    """
    prefix, prompts = shared([(example.prefix, example.prompt) for _, examples in questions for example, _ in examples])
    rest, branches = iter(prompts), []
    for name, examples in questions:
        total = sum(share for _, share in examples)
        first, *others = [Branch(name, next(rest), example.completion, weight=share / total)
                          for example, share in examples]
        branches.append(replace(first, others=tuple(others)))
    return TokenGroup(prefix, branches)
