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
    nothing. Both fields may be repeated: a causal model reads a repeated context with the first one, or the question,
    in view (Springer et al. 2024, "Repetition improves language model embeddings"; Arora et al. 2024, "Just read
    twice").

    Raises:
        UserError: a field is missing, unknown or formatted, or something follows the answer.
    """

    text: str = DEFAULT_TEMPLATE

    def __post_init__(self):
        self._parts()

    @property
    def shares_context(self) -> bool:
        """Whether questions of one context share a prefix."""
        return self._parts()[0][1] == "context"

    def prompt_pieces(self, context: str, question: str) -> tuple[str, str]:
        """(prefix, branch): their concatenation is the prompt, without the template's trailing whitespace."""
        (*fields, (last, _)) = self._parts()
        values = {"context": context, "question": question}
        first = next(i for i, (_, name) in enumerate(fields) if name == "question")
        between = fields[first][0]
        cut = _border(between) if first else 0
        prefix = "".join(literal + values[name] for literal, name in fields[:first]) + between[:cut]
        rest = "".join(literal + values[name] for literal, name in [(between[cut:], "question"), *fields[first + 1 :]])
        return prefix, rest + last.rstrip()

    @property
    def end_of_prompt(self) -> str:
        """The template's own words at the end of a prompt."""
        return self._parts()[-1][0].rstrip()

    def completion_text(self, answer: str) -> str:
        """The text after the prompt, without end of text; whitespace around the answer is stripped.

        Empty without an answer: the text then ends at the prompt.
        """
        before_answer, answer = self._parts()[-1][0], answer.strip()
        return before_answer[len(before_answer.rstrip()) :] + answer if answer else ""

    def whole(self, context: str, question: str, answer: str) -> str:
        """The text that the pieces make up."""
        return "".join((*self.prompt_pieces(context, question), self.completion_text(answer)))

    def _parts(self) -> list[tuple[str, str]]:
        """The fields' names in order, each with the text before it; the answer is the last."""
        parts, problems = [], []
        literal = ""
        try:
            for text, name, form, conversion in string.Formatter().parse(self.text):
                literal += text
                if name is None:
                    continue
                if name not in FIELDS:
                    problems.append(f"expected the fields {{context}}, {{question}} and {{answer}}, found {{{name}}}")
                if form or conversion:
                    problems.append(f"{{{name}}} cannot be formatted: write it without ! and :")
                parts.append((literal, name))
                literal = ""
        except ValueError as error:
            problems.append(f"{error}; write {{{{ and }}}} for literal braces")
        names = [name for _, name in parts]
        if "answer" not in names and not problems:
            parts.append((literal if literal.endswith(tuple(string.whitespace)) else literal + " ", "answer"))
            literal = ""
        problems += [f"{{{name}}} is missing" for name in FIELDS[:2] if name not in names]
        if not problems and (literal or "answer" in names[:-1]):
            problems.append("nothing may follow {answer}")
        if problems:
            raise UserError(
                f"template {self.text!r}: {'; '.join(problems)}. The default is {DEFAULT_TEMPLATE!r}."
            )
        return parts


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
