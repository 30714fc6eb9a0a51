"""The questions of a data set as prompts, and what their answers are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.chat_faults import ChatFaults
from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.examples import Data, prompt_groups
from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.length_report import LengthReport
from jittor_lora.data.squad import SquadData
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.evaluation.scoring import AUTO, SquadScore, chosen_rule, score
from jittor_lora.evaluation.text import chosen_evaluation, groups_of
from jittor_lora.formats.tokenizer import Tokenizer

MAX_NEW_TOKENS, MAX_NEW_CHAT_TOKENS = 32, 256


@dataclass(frozen=True)
class Questions:
    """Prompts to answer, and what the answers are compared with.

    Attributes:
        groups: tokenised prompts, questions of one context together.
        references: id → accepted answers, including those of dropped questions.
        report: what was cut.
        max_new_tokens: room left for each answer.
        contexts: id → the whole context, for questions that have one.
        places: id → where it is in the data, see `SquadData.places`.
        stop: text that ends a generated answer, besides end of text.
        scoring: the rule, see `evaluation/scoring.py`.
        no_answers: whether some may have no answer.
        text_scores: the scores of answers that are whole texts, see `evaluation/text.py`.
        parts: name → ids of those that get these scores by themselves too.
    """

    groups: list[TokenGroup]
    references: dict[str, list[str]]
    report: LengthReport
    max_new_tokens: int
    contexts: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stop: str | None = "\n"
    scoring: str = "squad"
    no_answers: bool = False
    text_scores: str = "e2e"
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Data, tokenizer: Tokenizer, template: Template, limit: int,
           max_new_tokens: int | None = None, scoring: str = AUTO, chat: ChatEncoder | None = None,
           text_scores: str = AUTO) -> Questions:
        """
        Args:
            limit: of prompt and answer together, in tokens.
            max_new_tokens: room left for each answer; by default 32, of conversations 256, or half the limit.
            scoring, text_scores: the rule and the scores of texts, or "auto" for those that the data ask for.
            chat: encodes conversations, whose last answers are the references.

        Raises:
            UserError: no prompt fits, the template refuses conversations, or the rule does not suit the data.
        """
        rule, talks = chosen_rule(scoring, data), isinstance(data, ConversationData)
        if max_new_tokens is None:
            max_new_tokens = min(MAX_NEW_CHAT_TOKENS if talks else MAX_NEW_TOKENS, max(limit // 2, 1))
        if max_new_tokens >= limit:
            raise UserError(f"max_new_tokens: {max_new_tokens} leaves no room for a prompt within {limit} tokens.")
        groups, report = prompt_groups(data, tokenizer, template, limit - max_new_tokens, chat)
        if report.faults:
            raise ChatFaults(report.faults)
        paragraphs = data.paragraphs if isinstance(data, SquadData) else ()
        contexts = {question.id: paragraph.context for paragraph in paragraphs for question in paragraph.questions}
        return cls(groups, data.references(), report, max_new_tokens, contexts, data.places(), None if talks else "\n",
                   rule, rule == "squad-v2" or isinstance(data, SquadData) and data.no_answers,
                   chosen_evaluation(text_scores, data), groups_of(data))

    def score(self, predictions: Mapping[str, str]) -> SquadScore:
        """Scores of answers by question id."""
        return score(self.references, predictions, self.places, self.scoring)

    @property
    def ids(self) -> list[str]:
        """Ids of the prompts, group by group."""
        return [branch.id for group in self.groups for branch in group.branches]

    def prompts(self) -> list[tuple[list[int], list[list[int]]]]:
        return [(group.prefix, [branch.prompt for branch in group.branches]) for group in self.groups]
