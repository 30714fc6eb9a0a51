"""Writes the tables of a benchmark, or of several that measured different parts, into a page.

    python benchmarks/report.py docs/performance.md benchmarks/results/bench.json
    python benchmarks/report.py docs/performance.md --machine avx2 benchmarks/avx2/bench.json

The text between `<!-- bench: NAME -->` and `<!-- /bench -->` is replaced by the table of that name (see
`jittor_lora.benchmark.report.TITLES`) or, for the name `setting`, by the sentences about machine and settings.
`--machine` fills only the marks with its value after the name, `<!-- bench: NAME avx2 -->`.
A table that the files do not contain is left unchanged, and its name printed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from jittor_lora.benchmark.report import read, setting, tables
from jittor_lora.files.atomic import atomic_write

MARKED = re.compile(r"(<!-- bench: (\w+)(?: (\w+))? -->\n).*?(<!-- /bench -->)", re.DOTALL)


def filled(page: str, texts: dict[str, str], machine: str | None = None) -> tuple[str, list[str]]:
    """The page with the texts filled in at the machine's marks, and the names without a text."""
    absent = []

    def text(found: re.Match) -> str:
        begin, name, of, end = found.groups()
        if of != machine:
            return found.group()
        if name not in texts:
            absent.append(name)
            return found.group()
        return f"{begin}\n{texts[name]}\n\n{end}"

    return MARKED.sub(text, page), absent


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("measurements", nargs="+")
    parser.add_argument("--machine", help="fill the marks of this machine")
    given = parser.parse_args(arguments)
    report = read(*given.measurements)
    text, absent = filled(given.page.read_text(encoding="utf-8"), {**tables(report), "setting": setting(report)},
                          given.machine)
    with atomic_write(given.page) as stream:
        stream.write(text)
    if absent:
        print(f"No measurements for: {', '.join(absent)}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
