"""What the questions of a data set are like, for the tables and reports that tell them apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jittor_lora.data.examples import Data
from jittor_lora.data.squad import SquadData

QUESTION_WORDS = ("what", "which", "who", "whom", "whose", "when", "where", "why", "how")
OTHER = "other"
_HOW_MANY = re.compile(r"\bhow (many|much)\b")
_QUESTION_WORD = re.compile(rf"\b({'|'.join(QUESTION_WORDS)})\b")


@dataclass(frozen=True)
class Item:
    """A question, or a prompt, with what is known about it.

    Attributes:
        question: its text, or that of the prompt.
        context: what it is asked about; empty for a prompt.
        references: accepted answers.
        answer: the reference that is trained on.
        start: where that answer begins, in characters of the context; -1 if unknown.
    """

    id: str
    question: str
    context: str
    references: tuple[str, ...]
    answer: str
    start: int = -1

    @property
    def question_word(self) -> str:
        """The first question word of the question ("how many" and "how much" are one of their own), or "other"."""
        text = self.question.lower()
        found = _QUESTION_WORD.search(text)
        if found is None:
            return OTHER
        many = _HOW_MANY.match(text, found.start())
        return f"how {many.group(1)}" if many else found.group(1)


def items_of(data: Data) -> list[Item]:
    """The items of a data set, in its order."""
    if isinstance(data, SquadData):
        return [_question(question, paragraph.context) for paragraph in data.paragraphs
                for question in paragraph.questions]
    references = data.references()
    return [Item(prompt.id, prompt.text.strip(), "", tuple(references[prompt.id]), references[prompt.id][0])
            for prompt in data.prompts]


def _question(question, context: str) -> Item:
    answer = question.training_answer()
    return Item(question.id, question.text, context, tuple(answer.text for answer in question.answers), answer.text,
                answer.start)
