"""Reports special tokens that texts spell out, such as <|im_start|>, and how they will be read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jittor_lora.data.examples import Data

_SHOWN = 5


def special_token_lines(examples: Iterable[Sequence[str]], special: Sequence[str], meaning: str,
                        noun: str = "examples") -> list[str]:
    """Lines about the special tokens that examples spell out; no line if there are none.

    Args:
        examples: the texts of each example.
        special: spellings of the special tokens.
        meaning: "text" or "token": how they are read; "unknown": the user has to say.
        noun: the word for examples.
    """
    if not special:
        return []
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    counts: Counter[str] = Counter()
    total = spelling = 0
    for texts in examples:
        found = [token for text in texts for token in pattern.findall(text)]
        total, spelling = total + 1, spelling + bool(found)
        counts.update(found)
    if not counts:
        return []
    shown = ", ".join(f"{token} {count:,}" for token, count in counts.most_common(_SHOWN))
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return [f"{spelling:,} of {total:,} {noun} spell out special tokens (counts: {shown}{more}). {_READ[meaning]}"]


_READ = {
    "token": "They are read as the tokens (special_tokens: token).",
    "text": "They are read as plain text, several ordinary tokens each, which is not what a chat model was trained on. "
            "If you mean the tokens themselves, pass --special-tokens token.",
    "unknown": "As text they take several ordinary tokens each, which is not what a chat model was trained on: text "
               "written in a chat template belongs in a format of conversations, such as messages, without the "
               "template's own words. If the letters are meant, pass --special-tokens text; if the tokens are, "
               "--special-tokens token.",
}


def texts_of(data: Data) -> Iterator[tuple[str, ...]]:
    """The texts of each example."""
    from jittor_lora.data.conversations import ConversationData  # these bring numpy
    from jittor_lora.data.squad import SquadData
    if isinstance(data, ConversationData):
        for conversation in data.conversations:
            yield tuple(turn.text for turn in conversation.turns)
    elif isinstance(data, SquadData):
        for paragraph in data.paragraphs:
            for question in paragraph.questions:
                yield (paragraph.context, question.text, *(answer.text for answer in question.answers))
    else:
        for prompt in data.prompts:
            for completion in prompt.completions:
                yield prompt.text, completion.text
