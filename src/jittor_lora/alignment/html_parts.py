"""Pieces of the report's HTML: texts in both languages, tables, sections."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence

from jittor_lora.alignment.words import LANGUAGES, say

NUMBER = ' class="number"'


def section(name: str, title: str, content: str) -> str:
    """Empty without content; `title` is a key of `words`."""
    if not content:
        return ""
    return (f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{both(title)}</h2>{content}'
            "</section>")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], section: str, kind: str = "", more: str = "") -> str:
    """`heads` and `rows` are HTML; the first cell heads its row."""
    cell = f'<td class="{kind}">' if kind else "<td>"
    lines = "".join(f'<tr><th scope="row">{first}</th>{"".join(f"{cell}{text}</td>" for text in others)}</tr>'
                    for first, *others in rows)
    head = "".join(f'<th scope="col"{NUMBER if kind == "number" and at else ""}>{text}</th>'
                   for at, text in enumerate(heads))
    return (f'<div class="scroll {more}" tabindex="0" role="region" aria-labelledby="{section}-title"><table><thead>'
            f"<tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>")


def both(key: str, **values: object) -> str:
    """The text of a key of `words` in both languages."""
    return each(lambda language: say(language, key, **values))


def each(text_in: Callable[[str], str]) -> str:
    """A text in both languages, of which the page shows one."""
    texts = {language: html.escape(text_in(language)) for language in LANGUAGES}
    if len(set(texts.values())) == 1:
        return texts["en"]
    return "".join(f'<span class="{language}" lang="{"zh-CN" if language == "zh" else "en"}">{text}</span>'
                   for language, text in texts.items())


def folded(count: int, content: str) -> str:
    return f"<details><summary>{both('all rows', count=f'{count:,}')}</summary>{content}</details>"
