"""Chat templates in Ollama's language, Go's text/template, from what a Jinja program writes.

A Jinja program cannot be translated in general, and need not be: nearly all chat templates write fixed texts around
messages. These are found by rendering conversations of marks, and the result counts only if it writes other
conversations as the program does. (Ollama gives a program `.System` and `.Messages` with `.Role` and `.Content`;
consecutive messages of one role are joined.)
"""

from __future__ import annotations

import os.path
import re
from typing import NamedTuple, Optional, Sequence

from jittor_lora.data.chat_template import ChatTemplate, Rendering
from jittor_lora.data.conversations import ASSISTANT, SYSTEM, USER, Turn

_MARKS = ("Qx1", "Qx2", "Qx3", "Qx4")
# What would begin an action or end the program, and what may be a character that Go does not print
_ESCAPED = r'"{3,}|"+$|[^\x20-\x7e\n\t]'
_SPECIAL = re.compile(r"\{\{+|\{(?=$|%s)|%s" % (_ESCAPED, _ESCAPED))


class Texts(NamedTuple):
    """What is written around messages.

    Attributes:
        start: before a conversation without a system's message.
        system, user, assistant: before and after a message of this role; None if a system has none.
        prompt: before the answer.
    """

    start: str
    system: Optional[tuple[str, str]]
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str

    def render(self, turns: Sequence[Turn]) -> str:
        """The text of a conversation that ends with a user's message, and the start of the answer."""
        around = {SYSTEM: self.system or ("", ""), USER: self.user, ASSISTANT: self.assistant}
        text = "" if turns[0].role == SYSTEM else self.start
        return text + "".join(around[t.role][0] + t.text + around[t.role][1] for t in turns) + self.prompt

    def go(self) -> str:
        """The program in Go's language."""
        start = literal(self.start)
        if self.system is not None and start:
            start = f"{{{{ if not .System }}}}{start}{{{{ end }}}}"
        messages = "".join(f'{{{{ if eq .Role "{role}" }}}}{literal(around[0])}{{{{ .Content }}}}{literal(around[1])}'
                           "{{ end }}" for role, around in ((SYSTEM, self.system), (USER, self.user),
                                                            (ASSISTANT, self.assistant)) if around is not None)
        return f"{start}{{{{ range .Messages }}}}{messages}{{{{ end }}}}{literal(self.prompt)}"


def literal(text: str) -> str:
    """A text as part of a program that a Modelfile holds between three quotation marks.

    Escaped are what would begin an action, what would end the program, and the characters that Ollama's parser drops:
    all that Go does not print.
    """
    return _SPECIAL.sub(lambda match: _escaped(match[0]), text)


def texts_of(template: ChatTemplate, begin: str = "") -> Texts | None:
    """The texts that the template writes around messages; None if it does more than that.

    Args:
        begin: a token that is put before each text anyway, which the template has to write first and the result lacks.
    """
    found = _texts(template, begin)
    if found is None:
        return None
    talk = [Turn(USER, "Is it so?"), Turn(ASSISTANT, "It is, {{ so }}."), Turn(USER, "Why?\n\nTell me."),
            Turn(ASSISTANT, "<b>"), Turn(USER, "北京?")]
    openings = [[], *([[Turn(SYSTEM, "Be brief.")]] if found.system else [])]
    talks = [[*opening, *talk[:count]] for opening in openings for count in (1, 3, 5)]
    return found if all(_rendered(template, turns, begin) == found.render(turns) for turns in talks) else None


def _texts(template: ChatTemplate, begin: str) -> Texts | None:
    a, b, c, d = _MARKS
    turns = [Turn(USER, a), Turn(ASSISTANT, b), Turn(USER, c)]
    plain, with_system = (_rendered(template, talk, begin) for talk in (turns, [Turn(SYSTEM, d), *turns]))
    whole, guided = _between(plain, (a, b, c)), _between(with_system, (d, a, b, c))
    if whole is None or (guided is None and with_system not in (None, plain)):
        return None
    first, answer, again, prompt = whole
    befores = [first, again, *([guided[1]] if guided else [])]  # users' messages
    # Where a text between two messages is cut does not change what is written, but a cut that the program makes reads
    # best: that of the same conversations without the start of an answer.
    ends = [_between(_rendered(template, turns[:count], begin, prompt=False), _MARKS[:count]) for count in (1, 2)]
    after_user, after_answer = (parts[-1] if parts else "" for parts in ends)
    if not (answer.startswith(after_user) and prompt.startswith(after_user)):
        after_user = ""
    user = again[len(after_answer) :]
    if not again.startswith(after_answer) or not all(text.endswith(user) for text in befores):
        user = os.path.commonprefix([text[::-1] for text in befores])[::-1]
    start, after_answer, *after_system = (text[: len(text) - len(user)] for text in befores)
    return Texts(start, (guided[0], after_system[0]) if guided else None, (user, after_user),
                 (answer[len(after_user) :], after_answer), prompt[len(after_user) :])


def _rendered(template: ChatTemplate, turns: Sequence[Turn], begin: str, prompt: bool = True) -> str | None:
    """Without `begin`; None if the program refuses the conversation or writes something else first."""
    text = template.render_all(turns, [Rendering(len(turns), prompt)])[0]
    return text[len(begin) :] if isinstance(text, str) and text.startswith(begin) else None


def _escaped(text: str) -> str:
    if text.isprintable() and text[0] not in '{"':
        return text
    return '{{ "%s" }}' % "".join(f"\\{c}" if c == '"' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _between(text: str | None, marks: Sequence[str]) -> list[str] | None:
    """What stands before, between and after marks that occur once each, in this order."""
    if text is None or any(text.count(mark) != 1 for mark in marks):
        return None
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]

