"""Conversations as token ids, and which of them an assistant says.

The ids are those of transformers' `apply_chat_template`, except that special tokens come from the template alone: the
same letters in a turn's text stay text, unless the tokenizer's `special_tokens` is "token". What is scored is found by
rendering: an assistant's turn starts where the prompt of its generation ends, and ends with the first special token
that the template writes after its text.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from dataclasses import replace
from functools import cached_property
from typing import Iterable, Iterator, NamedTuple, Sequence

from jittor_lora.data.chat_faults import ChatFaults, Fault
from jittor_lora.data.chat_rendering import ChatTokenizer, Problem, Rendered, Renderer
from jittor_lora.data.chat_skeleton import MOST_TURNS, Skeleton, mark
from jittor_lora.data.chat_template import ChatTemplate, Rendering
from jittor_lora.data.conversations import ASSISTANT, SYSTEM, USER, Conversation, Turn
from jittor_lora.errors import UserError


class Chat(NamedTuple):
    """A rendered conversation, or the start of one, in token ids.

    Attributes:
        ids: of the whole rendering; tokens after the last scored one need not be computed.
        scored: ranges [start, end) of `ids`, in order: what an assistant says, with the token that ends its turn.
        within_token: number of ranges that start within a token of the prompt, which is learnt as a whole.
    """

    ids: list[int]
    scored: list[tuple[int, int]]
    within_token: int = 0


class ChatEncoder:
    """Encodes conversations through a template."""

    def __init__(self, tokenizer: ChatTokenizer, template: ChatTemplate):
        self.tokenizer, self.template = tokenizer, template
        self._renderer = Renderer(tokenizer, template)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an assistant's turn in this template; empty if it refuses a plain question and answer.

        Raises:
            UserError: the template is no Jinja2 program, or meets a limit.
        """
        turns = (Turn(SYSTEM, "a"), Turn(USER, "a"), Turn(ASSISTANT, "a"))
        found = [self._renderer.skeletons.get(some, [Rendering(len(some))])[0] for some in (turns[1:], turns)]
        return frozenset(skeleton.end.id for skeleton in found if isinstance(skeleton, Skeleton) and skeleton.end)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of these turns and the start of an assistant's.

        Raises:
            UserError: the template refuses the turns or is unusable, or takes a special token spelled out in a text
                for its own.
        """
        found = self._renderer.render(turns, [Rendering(len(turns), True)])
        if isinstance(found, Problem):
            raise UserError(f"{self.template.origin}: {found.sentence}")
        return self.tokenizer.encode_rendered(found[0].text, found[0].special)[0]

    def training(self, conversation: Conversation) -> list[Chat]:
        """What to train of a conversation, usually one `Chat`.

        Each scored turn stands in the context in which it would be generated. A template that rewrites earlier turns,
        as those do that drop what was thought, has several contexts, and so gives several chats.

        Raises:
            ChatFaults: something that makes training futile.
            UserError: the template is no Jinja2 program, or meets a limit.
        """
        chats, faults = self.try_training(conversation)
        blocking = [fault for fault in faults if fault.blocks]
        if blocking:
            raise ChatFaults(blocking)
        return chats

    def try_training(self, conversation: Conversation) -> tuple[list[Chat], list[Fault]]:
        """(Chats, faults): no chats if a fault blocks.

        Raises:
            UserError: the template is no Jinja2 program, or meets a limit.
        """
        answers = self._answers(conversation.turns)
        problems = [each for each in answers if isinstance(each, Problem)]
        if not problems:
            try:
                chats = _chats(answers, self.tokenizer)
            except UserError as error:  # the tokenizer's
                problems = [Problem("tokens", str(error))]
            else:
                notes = [Fault(conversation.id, *OTHER_PROMPT, blocks=False)]
                return chats, notes if any(answer.other_prompt for answer in answers) else []
        return [], [Fault(conversation.id, *each) for each in dict.fromkeys(problems)]

    def _answers(self, turns: Sequence[Turn]) -> list[_Answer | Problem]:
        """The scored turns of an assistant."""
        scored = [i for i, turn in enumerate(turns) if turn.role == ASSISTANT and turn.scored]
        if not scored:
            return [UNSCORED]
        if len(turns) > MOST_TURNS:
            return [Problem("turns", f"expected at most {MOST_TURNS:,} turns; found {len(turns):,}. Divide it.")]
        wanted = [rendering for i in scored for rendering in (Rendering(i, True), Rendering(i + 1))]
        rendered = self._renderer.render(turns, wanted)
        if isinstance(rendered, Problem):
            return [rendered]
        skeletons = self._renderer.skeletons.get(turns, wanted[1::2])
        if not all(isinstance(skeleton, Skeleton) for skeleton in skeletons):
            return [UNCERTAIN]
        return list(_lost(turns, skeletons)) or [
            self._answer(turns[: i + 1], *found) for i, *found in zip(scored, rendered[::2], rendered[1::2], skeletons)]

    def _answer(self, turns: Sequence[Turn], prompt: Rendered, whole: Rendered, skeleton: Skeleton
                ) -> _Answer | Problem:
        """The last of these turns.

        Args:
            prompt, whole: renderings of the prompt of its generation, and of all turns.
        """
        if skeleton.end is None:
            return NO_END
        start, other_prompt = len(prompt.text), not whole.text.startswith(prompt.text)
        if other_prompt:
            changed = [*turns[:-1], replace(turns[-1], text=mark(len(turns) - 1))]
            other = self.template.render_all(changed, [Rendering(len(turns))])[0]
            if not isinstance(other, str):
                return UNCERTAIN
            start = len(os.path.commonprefix([whole.text, other]))
        after = len(whole.text) - len(skeleton.tail)
        if not whole.text.endswith(skeleton.tail) or after < start:
            return UNCERTAIN
        return _Answer(whole, start, after + skeleton.end.end, skeleton.end.special, other_prompt)


UNSCORED = Problem("unscored", "no turn of an assistant to learn. Leave it out.")
NO_END = Problem("end", "no token ends an assistant's turn: a model trained on it would never stop. Use a template "
                        "that writes one after the text, such as --chat-template gpt2.")
UNCERTAIN = Problem("end", "where an assistant's turn ends depends on its text in this template. Use another "
                           "(--chat-template).")
OTHER_PROMPT = Problem("prompt", "the template starts a turn to generate otherwise than it writes the same turn here, "
                                 "so that what is learnt follows another prompt than what is generated.")


class _Answer(NamedTuple):
    """A scored turn at the end of a rendering: characters [start, end), the last of which are the token that ends it.

    Attributes:
        cut: whether that token is special, so that what follows cannot change the tokens before.
        other_prompt: whether the turn does not follow the prompt of its generation.
    """

    rendered: Rendered
    start: int
    end: int
    cut: bool
    other_prompt: bool

    def within(self, longer: Rendered, tokenizer: ChatTokenizer) -> bool:
        """Whether a longer rendering starts with the same tokens up to the end of this turn."""
        if not longer.disguised.startswith(self.rendered.disguised[: self.end]):
            return False
        if self.cut:
            return any(span.end == self.end for span in longer.special)
        ids, offsets = tokenizer.encode_rendered(self.rendered.text, self.rendered.special)
        count = bisect_left([start for start, _ in offsets], self.end)
        return tokenizer.encode_rendered(longer.text, longer.special)[0][:count] == ids[:count]


def _chats(answers: Sequence[_Answer], tokenizer: ChatTokenizer) -> list[Chat]:
    groups: list[list[_Answer]] = []  # of answers within the rendering of the group's first
    for answer in reversed(answers):
        group = next((group for group in groups if answer.within(group[0].rendered, tokenizer)), None)
        if group is None:
            groups.append([answer])
        else:
            group.append(answer)
    return [_chat(group, tokenizer) for group in reversed(groups)]


def _chat(group: Sequence[_Answer], tokenizer: ChatTokenizer) -> Chat:
    ids, offsets = tokenizer.encode_rendered(group[0].rendered.text, group[0].rendered.special)
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    scored, within_token = [], 0
    for answer in reversed(group):
        first = min(bisect_right(ends, answer.start), bisect_left(starts, answer.start))  # a token may have no letters
        within_token += starts[first] < answer.start
        scored.append((first, bisect_left(starts, answer.end)))
    return Chat(ids, scored, within_token)


def _lost(turns: Sequence[Turn], skeletons: Iterable[Skeleton]) -> Iterator[Problem]:
    """Turns that the template drops or repeats."""
    for skeleton in skeletons:
        for i, count in skeleton.lost:
            role = turns[i].role
            if count == 0 and turns[i].text.strip():
                hint = "Leave turns of a system out." if role == SYSTEM else "Use another template (--chat-template)."
                yield Problem("dropped", f"the template drops turn {i + 1} ({role}). {hint}")
            elif count > 1:
                yield Problem("repeated", f"the template writes turn {i + 1} ({role}) {count} times. Use another "
                                          "(--chat-template).")
