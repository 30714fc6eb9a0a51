"""Renderings of conversations in which the special tokens are known to be the template's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Protocol, Sequence

from jittor_lora.data.chat_skeleton import FindsAdded, Skeleton, Skeletons
from jittor_lora.data.chat_template import ChatTemplate, Rendering, TemplateRefusal
from jittor_lora.data.conversations import SYSTEM, Turn
from jittor_lora.data.disguise import Disguise

CONFUSED = ("the template takes a special token that is spelled out in a text for one of its own, so that the text "
            "cannot stay text. If the token itself is meant, pass --special-tokens token; otherwise leave it out.")


class ChatTokenizer(FindsAdded, Protocol):
    """The interface of a tokenizer; see `formats.tokenizer.Tokenizer`."""

    special: Sequence[str]
    special_tokens: str

    def encode_rendered(self, text: str, special: Sequence[Any]) -> tuple[list[int], list[tuple[int, int]]]: ...


class Problem(NamedTuple):
    """A fault of a conversation that is yet to be named; see `chat_faults.Fault`."""

    kind: str
    sentence: str


class Rendered(NamedTuple):
    """
    Attributes:
        text: the rendering.
        disguised: the same with disguised texts (see `disguise.py`), of the same length.
        special: spans of the special tokens, in both.
    """

    text: str
    disguised: str
    special: list[Any]


class Renderer:
    """Renders conversations for one tokenizer.

    Unless `special_tokens` of the tokenizer is "token", each rendering is held to two facts: the disguise of texts has
    not changed it, and its special tokens are those of its skeleton, where the texts are marks.
    """

    def __init__(self, tokenizer: ChatTokenizer, template: ChatTemplate):
        self._tokenizer, self._template = tokenizer, template
        self._disguise = Disguise(tokenizer.special)
        self.skeletons = Skeletons(template, tokenizer)

    def render(self, turns: Sequence[Turn], wanted: Sequence[Rendering]) -> list[Rendered] | Problem:
        """
        Raises:
            UserError: the template is no Jinja2 program, or meets a limit.
        """
        plain = self._template.render_all(turns, wanted)
        refusal = next((text for text in plain if isinstance(text, TemplateRefusal)), None)
        if refusal:
            return Problem("refused", self._refused(turns, wanted, refusal))
        if self._tokenizer.special_tokens != "text":
            return [Rendered(text, text, self._special(text)) for text in plain]
        texts, back = self._disguise([turn.text for turn in turns])
        disguised = plain if not back else self._template.render_all(
            [replace(turn, text=text) for turn, text in zip(turns, texts)], wanted)
        found = []
        for text, hidden, skeleton in zip(plain, disguised, self.skeletons.get(turns, wanted)):
            if not isinstance(hidden, str) or hidden.translate(back) != text or not isinstance(skeleton, Skeleton):
                return Problem("special", CONFUSED)
            found.append(Rendered(text, hidden, self._special(hidden)))
            if [span.id for span in found[-1].special] != skeleton.special:
                return Problem("special", CONFUSED)
        return found

    def _special(self, text: str) -> list[Any]:
        return [span for span in self._tokenizer.added(text) if span.special]

    def _refused(self, turns: Sequence[Turn], wanted: Sequence[Rendering], refusal: TemplateRefusal) -> str:
        said = f"the chat template refuses it: {refusal.words}"
        if turns[0].role == SYSTEM:
            without = [Rendering(rendering.count - 1, rendering.prompt) for rendering in wanted if rendering.count > 1]
            found = self.skeletons.get(turns[1:], without)
            if without and all(isinstance(skeleton, Skeleton) for skeleton in found):
                return f"{said}. It takes no turn of a system: leave those out."
        return f"{said}."
