"""Questions of a data set with the facts that tables and reports group them by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.examples import Data
from jittor_lora.data.squad import SquadData

QUESTION_WORDS = ("what", "which", "who", "whom", "whose", "when", "where", "why", "how")
OTHER = "other"
_HOW_MANY = re.compile(r"\bhow (many|much)\b")
_QUESTION_WORD = re.compile(rf"\b({'|'.join(QUESTION_WORDS)})\b")


@dataclass(frozen=True)
class Item:
    """A question, a prompt, or a conversation.

    Attributes:
        question: its text, the prompt's, or that of the turn to be answered.
        context: the paragraph it asks about; empty for a prompt.
        references: accepted answers; none if there is no answer.
        answer: the training answer, one of the references, or empty.
        start: where that answer starts, in characters of the context; -1 if unknown.
    """

    id: str
    question: str
    context: str
    references: tuple[str, ...]
    answer: str
    start: int = -1

    @property
    def question_word(self) -> str:
        """The first question word ("how many" and "how much" count as words in their own right), or "other"."""
        text = self.question.lower()
        found = _QUESTION_WORD.search(text)
        if found is None:
            return OTHER
        how_many = _HOW_MANY.match(text, found.start())
        return f"how {how_many.group(1)}" if how_many else found.group(1)


def items_of(data: Data) -> list[Item]:
    """The items of a data set, in its order."""
    if isinstance(data, SquadData):
        return [_question(question, paragraph.context) for paragraph in data.paragraphs
                for question in paragraph.questions]
    references = data.references()
    if isinstance(data, ConversationData):
        return [Item(c.id, c.question[-1].text.strip(), "", tuple(references[c.id]), references[c.id][0])
                for c in data.conversations if c.id in references]
    return [Item(prompt.id, prompt.text.strip(), "", tuple(references[prompt.id]), references[prompt.id][0])
            for prompt in data.prompts]


def _question(question, context: str) -> Item:
    answer = question.training_answer()
    return Item(question.id, question.text, context, tuple(answer.text for answer in question.answers), answer.text,
                answer.start)
