"""What a reader of run folders left out, and why."""

from __future__ import annotations

from dataclasses import dataclass

from jittor_lora.serving.api.plain import shown_text

_TEXTS = {
    "lines": "{file}: {count:,} lines are not JSON objects with a step, and were skipped",
    "backward": "{file}: {count:,} lines have a step that is not after the one before, and were skipped",
    "not_finite": "{file}: {count:,} values are not finite, and were left out",
    "links": "{count:,} links to folders were not followed",
    "unreadable": "{count:,} folders could not be read",
    "folders": "more than {count:,} folders: the rest was not searched",
    "runs": "more than {count:,} runs: only the latest are listed",
}


@dataclass
class Note:
    """
    Attributes:
        code: of what happened; the page translates those of `_TEXTS`.
        file: its name.
        count: how many.
        text: in English.
    """

    code: str
    file: str = ""
    count: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        text = self.text or _TEXTS[self.code].format(file=self.file, count=self.count)
        self.text = str(shown_text(text))
