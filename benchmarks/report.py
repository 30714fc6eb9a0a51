"""Puts the tables of a benchmark, or of several that measured different parts, into a page.

    python benchmarks/report.py docs/performance.md benchmarks/results/bench.json

What stands between `<!-- bench: NAME -->` and `<!-- /bench -->` is replaced by the table of that name (see
`jittor_lora.benchmark.report.TITLES`), or by the sentences about machine and settings for the name `setting`.
A table that the files do not have is left as it is, and named.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from jittor_lora.benchmark.report import read, setting, tables
from jittor_lora.files import atomic_write

MARKED = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def filled(page: str, texts: dict[str, str]) -> tuple[str, list[str]]:
    """The page with the texts at their places, and the names for which there is no text."""
    absent = []

    def text(found: re.Match) -> str:
        begin, name, end = found.groups()
        if name not in texts:
            absent.append(name)
            return found.group()
        return f"{begin}\n{texts[name]}\n\n{end}"

    return MARKED.sub(text, page), absent


def main(page: str, *measurements: str) -> None:
    report = read(*measurements)
    text, absent = filled(Path(page).read_text(encoding="utf-8"), {**tables(report), "setting": setting(report)})
    with atomic_write(page) as stream:
        stream.write(text)
    if absent:
        print(f"No measurements for: {', '.join(absent)}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
