"""The command `jittor-lora`: finds the verb, runs it, and turns what goes wrong into one message and an exit code.

Exit codes: 0 done; 1 a defect of this program (with a traceback); 2 a mistake of the user's or a fault of the
machine; 130 interrupted (Ctrl-C); 143 ended by SIGTERM; 141 the reader of standard output went away.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import os
import re
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from jittor_lora import __version__
from jittor_lora.errors import Stopped, UserError
from jittor_lora.system import job, runtime

# Each is a module of this package with `add_parser(subparsers)` and `run(args) -> int`.
VERBS = ("quickstart", "train", "evaluate", "generate", "plot", "compare", "curve", "merge", "export", "adapter",
         "inspect", "doctor", "bench")

IN_RANKS = ("train", "evaluate")  # verbs whose work several processes under mpirun share

# Faults of the machine or of a path that was given, not of this program.
MACHINE_FAULTS = frozenset((
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EMFILE,
    errno.ENAMETOOLONG, errno.ENFILE, errno.ENODEV, errno.ENOENT, errno.ENOMEM, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS, errno.ESTALE, errno.ETXTBSY,
))
WHAT_TO_DO = {
    errno.EDQUOT: "Free space within the quota, or name another folder.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENOSPC: "Free space on that disk, or name a folder on another one.",
    errno.EROFS: "Name a folder that can be written.",
    errno.EACCES: "Change its permissions, or name another path.",
    errno.EPERM: "Change its permissions, or name another path.",
}

NO_MEMORY = ("this machine does not have enough memory. "
             "Lower --max-tokens-per-stream or --batch-size, or take a smaller base.")


class Formatter(argparse.HelpFormatter):
    """Help whose usage, titles and flags are no wider than the terminal either."""

    def start_section(self, heading):
        super().start_section("\n".join(textwrap.wrap(heading or "", self._width - 1)))

    def _format_usage(self, usage, actions, groups, prefix):
        text = super()._format_usage(usage, actions, groups, prefix)
        return text if usage is None else _within(text.strip(), self._width, " " * 7) + "\n\n"

    def _format_action_invocation(self, action):
        indent = self._current_indent
        return _within(super()._format_action_invocation(action), self._width - indent, " " * (indent + 4))


def _within(text: str, width: int, indent: str) -> str:
    """`text` in lines of a width, broken after blanks and commas, with `indent` before all but the first."""
    lines = [""]
    for piece in re.split(r"(?<=[, ])(?=\S)", text):
        if lines[-1].strip() and len((lines[-1] + piece).rstrip()) > width:
            lines.append(indent)
        lines[-1] += piece
    return "\n".join(map(str.rstrip, lines))


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `UserError`s, and that takes no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Formatter, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\nRun `{self.prog} --help` for all flags.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; by default the process's.

    Returns: the exit code.
    """
    here = job.current()
    if here.rank:  # the first of several processes speaks
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    try:
        with _sigterm_stops(), runtime.undisturbed_libraries():
            code = _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt as stop:  # also one that comes while another error is on its way
        print("\nInterrupted.", file=sys.stderr)
        code = 128 + (stop.signal if isinstance(stop, Stopped) else signal.SIGINT)
    if code and here.several:
        job.end(here, "", code)
    return code


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Within the block SIGTERM is like Ctrl-C, so that what is half-written is removed."""
    def stop(number, frame):
        raise Stopped(number)

    before = signal.getsignal(signal.SIGTERM)
    free = before == signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    if free:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if free:
            signal.signal(signal.SIGTERM, before)


def _main(argv: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where standard output is not UTF-8, what it cannot show is escaped rather than fatal.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _failed(str(error))
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        return _failed(NO_MEMORY)
    except OSError as error:
        if error.errno not in MACHINE_FAULTS:
            return _defect()
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        advice = WHAT_TO_DO.get(error.errno, "")
        return _failed(f"{where}{error.strerror}. {advice}".rstrip())
    except Exception as error:
        # As which Jittor passes on what an operator throws.
        return _failed(NO_MEMORY) if "std::bad_alloc" in str(error) else _defect()


def _run(argv: list[str]) -> int:
    parser = Parser(prog="jittor-lora", description="LoRA fine-tuning of GPT-2 and Llama-family models on Jittor.")
    parser.add_argument("--version", action="version", version=f"jittor-lora {__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB [flags]")
    verb = next((argument for argument in argv if not argument.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        from jittor_lora.settings.base import did_you_mean, nearest  # needed after a mistake only
        raise UserError(f"there is no verb {verb!r}{did_you_mean(nearest(verb, VERBS))}\nVerbs: {', '.join(VERBS)}.")
    if job.current().several and verb is not None and verb not in IN_RANKS:
        raise UserError(f"under mpirun there are {' and '.join(IN_RANKS)}; run {verb} without it.")
    # Only the verb that is asked for is imported: each brings what its flags need.
    modules = {name: importlib.import_module(f"jittor_lora.cli.{name}") for name in VERBS if verb in (None, name)}
    for module in modules.values():
        module.add_parser(subparsers)
    try:
        args, unknown = parser.parse_known_args(argv)
    except SystemExit as end:  # --help or --version
        return end.code
    if unknown:
        raise UserError(_unknown(unknown, _innermost(parser, argv)))
    if verb is None:
        parser.print_help(sys.stderr)
        return 2
    return modules[verb].run(args)


def _innermost(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.ArgumentParser:
    """The parser of the verb, and of its action, that `argv` names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            named = next((argument for argument in argv if argument in action.choices), None)
            return parser if named is None else _innermost(action.choices[named], argv[argv.index(named) + 1 :])
    return parser


def _unknown(arguments: list[str], parser: argparse.ArgumentParser) -> str:
    from jittor_lora.settings.base import did_you_mean, nearest  # needed after a mistake only
    flags = {flag.lstrip("-"): flag for action in parser._actions for flag in action.option_strings}
    lines = []
    for before, argument in zip(["", *arguments], arguments):
        name = argument.split("=")[0]
        if argument.startswith("-"):
            lines.append(f"there is no flag {name}{did_you_mean(flags.get(nearest(name.lstrip('-'), flags)))}")
        elif not before.startswith("-"):  # else it is the value of the unknown flag
            lines.append(f"{argument!r} belongs to no flag; text with spaces is put in quotes")
    return "\n".join([*lines, f"Run `{parser.prog} --help` for all flags."])


def _failed(message: str) -> int:
    return _ended(f"jittor-lora: {message}", 2)


def _defect() -> int:
    return _ended(f"{traceback.format_exc()}\njittor-lora: this is a defect of the program, not of your input. Please "
                  "report it with the lines above and the output of `jittor-lora doctor`.", 1)


def _ended(text: str, code: int) -> int:
    here = job.current()
    if here.several:
        job.end(here, text, code)
    print(text, file=sys.stderr)
    return code
