"""`jittor-lora doctor`: what this machine has, what it lacks, and how to fix it."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any, Sequence

from jittor_lora.cli.output import json_text
from jittor_lora.system import diagnostics, runtime
from jittor_lora.system.diagnostics import Check

SHOWN = {diagnostics.OK: "OK", diagnostics.WARNING: "warning", diagnostics.MISSING: "MISSING"}
WIDTH = 120


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb to `subparsers`, the result of `ArgumentParser.add_subparsers`."""
    parser = subparsers.add_parser(
        "doctor", help="check this machine, and show how to install what is missing",
        description="Check the requirements of Jittor and of a training run. Exit status 0: ready; 1: something is "
                    "missing.")
    parser.add_argument("--deep", action="store_true",
                        help="also import Jittor (which compiles for minutes the first time) and contact the model hub")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the checks. Returns 0 if nothing is missing, else 1."""
    environ = runtime.environment()
    checks = diagnostics.machine_checks(environ, runtime.jittor_home(), Path.cwd())
    if args.deep:
        checks += diagnostics.deep_checks(environ)
    can_run = all(check.status != diagnostics.MISSING for check in checks)
    if args.json:
        report = {"can_run": can_run, "checks": [asdict(check) for check in checks], "system": runtime.system_info()}
        print(json_text(report, indent=2))
    else:
        print(table(checks))
        print("Ready." if can_run else "Not ready: fix what is missing, then run this again.")
    return 0 if can_run else 1


def table(checks: Sequence[Check]) -> str:
    """One line per check, with its fix indented below."""
    name_width = max(len(check.name) for check in checks)
    indent = name_width + 11
    lines = []
    for check in checks:
        head = f"{check.name:<{name_width}}  {SHOWN[check.status]:<7}  "
        lines += _wrapped(head, check.found, indent)
        if check.mend:
            lines += _wrapped(" " * indent + "-> ", check.mend, indent + 3)
    return "\n".join(lines)


def _wrapped(head: str, text: str, indent: int) -> list[str]:
    return [line for index, part in enumerate(text.splitlines())
            for line in textwrap.wrap(part, WIDTH, initial_indent=" " * indent if index else head,
                                      subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)]
