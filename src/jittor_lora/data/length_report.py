"""What became of the examples on their way into the model's context length."""

from __future__ import annotations

from dataclasses import dataclass, field

from jittor_lora.data.chat_faults import Fault


@dataclass
class LengthReport:
    """How examples longer than the limit were handled.

    Attributes:
        limit: the most tokens of an example, including its completion or the space reserved for one.
        examples: their number.
        longest: tokens of the longest one before cutting, and its id.
        windowed: ids of those whose context was cut to a window around the answer (training).
        cut: ids of those whose context was cut at its end (evaluation, or no answer), or whose plain prompt was cut at
            its start.
        shortened: ids of conversations of which turns were left out: the last ones (training), or the first.
        dropped: id -> reason.
        within_token: the number of examples whose completion starts within a token of the prompt.
        faults: of conversations in their template.
        several: the number of questions with several reference answers to learn.
    """

    limit: int
    examples: int = 0
    longest: tuple[int, str] = (0, "")
    windowed: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    within_token: int = 0
    shortened: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    several: int = 0

    @property
    def kept(self) -> int:
        return self.examples - len(self.dropped)

    def lines(self) -> list[str]:
        """Sentences for the screen: a summary, and one per kind of change."""
        lines = [
            f"{self.kept:,} of {self.examples:,} examples, the longest {self.longest[0]:,} tokens "
            f"({self.longest[1]}), limit {self.limit:,}"
        ]
        if self.windowed:
            lines.append(f"{len(self.windowed):,} too long: context cut to a window around the answer")
        if self.cut:
            lines.append(f"{len(self.cut):,} too long: cut to the limit")
        if self.shortened:
            lines.append(f"{len(self.shortened):,} too long: turns left out")
        if self.within_token:
            lines.append(f"{self.within_token:,} completions start within a token of their prompt; that token is "
                         "learnt with them, but a prompt on its own has other tokens. Move the space at the end of the "
                         "prompt to the start of the completion")
        if self.several:
            lines.append(f"{self.several:,} questions have several reference answers to learn")
        reasons = list(self.dropped.values())
        lines += [f"{reasons.count(reason):,} dropped: {reason}" for reason in dict.fromkeys(reasons)]
        return lines
