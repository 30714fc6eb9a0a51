"""Turns a context, a question and an answer into a text, and divides it into pieces.

A text has three pieces: a prefix that the questions of one context share, the rest of the prompt, and the completion.
The default template becomes

    Context: <context>\\nQuestion: | <question>\\nAnswer: | <answer>

with each space at the start of the following piece. No word of GPT-2's tokenizer spans two such pieces, so they may be
encoded one by one (`formats/tokenizer_steps.py`); for other tokenizers the ids of whole texts are compared
(`data/encoding.py`).
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from jittor_lora.errors import UserError

DEFAULT_TEMPLATE = "Context: {context}\nQuestion: {question}\nAnswer:"
FIELDS = ("context", "question", "answer")


@dataclass(frozen=True)
class Template:
    """A prompt with the fields `{context}` and `{question}`; the answer follows it after a space.

    `{answer}` at the end replaces that space by the text before it. Literal braces are doubled. With the context before
    the question, the questions of one context share the text up to the question; the other order works too, but shares
    nothing.

    Raises:
        UserError: a field is missing, unknown, repeated or formatted, or something follows the answer.
    """

    text: str = DEFAULT_TEMPLATE

    def __post_init__(self):
        self._literals()

    @property
    def shares_context(self) -> bool:
        """Whether questions of one context share a prefix."""
        return self._literals()[1][0] == "context"

    def prompt_pieces(self, context: str, question: str) -> tuple[str, str]:
        """(prefix, branch): their concatenation is the prompt, without the template's trailing whitespace."""
        (first, between, before_answer), (name, _) = self._literals()
        end = before_answer.rstrip()
        if name == "question":
            return "", first + question + between + context + end
        cut = _border(between)
        return first + context + between[:cut], between[cut:] + question + end

    @property
    def end_of_prompt(self) -> str:
        """The template's own words at the end of a prompt."""
        return self._literals()[0][2].rstrip()

    def completion_text(self, answer: str) -> str:
        """The text after the prompt, without end of text; whitespace around the answer is stripped.

        Empty without an answer: the text then ends at the prompt.
        """
        before_answer, answer = self._literals()[0][2], answer.strip()
        return before_answer[len(before_answer.rstrip()) :] + answer if answer else ""

    def whole(self, context: str, question: str, answer: str) -> str:
        """The text that the pieces make up."""
        return "".join((*self.prompt_pieces(context, question), self.completion_text(answer)))

    def _literals(self) -> tuple[tuple[str, str, str], tuple[str, str]]:
        """The texts before the two fields and before the answer; the names of the two fields."""
        literals, names, problems = [], [], []
        literal = ""
        try:
            for text, name, form, conversion in string.Formatter().parse(self.text):
                literal += text
                if name is None:
                    continue
                if name not in FIELDS:
                    problems.append(f"expected the fields {{context}}, {{question}} and {{answer}}, found {{{name}}}")
                elif name in names:
                    problems.append(f"{{{name}}} occurs twice")
                if form or conversion:
                    problems.append(f"{{{name}}} cannot be formatted: write it without ! and :")
                literals.append(literal)
                names.append(name)
                literal = ""
        except ValueError as error:
            problems.append(f"{error}; write {{{{ and }}}} for literal braces")
        if "answer" not in names and not problems:
            literals.append(literal if literal.endswith(tuple(string.whitespace)) else literal + " ")
            names.append("answer")
            literal = ""
        problems += [f"{{{name}}} is missing" for name in FIELDS[:2] if name not in names]
        if not problems and (names[-1] != "answer" or literal):
            problems.append("nothing may follow {answer}")
        if problems:
            raise UserError(
                f"template {self.text!r}: {'; '.join(problems)}. The default is {DEFAULT_TEMPLATE!r}."
            )
        return (literals[0], literals[1], literals[2]), (names[0], names[1])


def _border(between: str) -> int:
    """Where to cut the text between context and question.

    As late as possible, to share more: before the last space that follows a non-space. Without one, before the last of
    the leading spaces, because the context may itself end in spaces, and GPT-2 joins all spaces but the last into one
    word.
    """
    for i in range(len(between) - 1, 0, -1):
        if between[i].isspace() and not between[i - 1].isspace():
            return i
    return max(len(between) - len(between.lstrip()) - 1, 0)
