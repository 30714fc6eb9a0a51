"""The command `jittor-lora`: finds the verb, runs it, and turns errors into one message and an exit code.

Exit codes: 0 success; 1 a bug (with a traceback); 2 a user error or a fault of the machine; 130 interrupted (Ctrl-C);
143 terminated by SIGTERM; 141 the reader of standard output went away.
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
from jittor_lora.cli.interrupted import exit_code
from jittor_lora.errors import Stopped, UserError
from jittor_lora.system import job, runtime

# Each is a module of this package, with `add_parser(subparsers)` and `run(args) -> int`.
VERBS = ("quickstart", "train", "evaluate", "generate", "serve", "plot", "compare", "curve", "align", "merge",
         "export", "adapter", "inspect", "doctor", "bench", "bundle")

IN_RANKS = ("train", "evaluate")  # the verbs that run in several processes under mpirun

# Faults of the machine or of a given path, not bugs.
MACHINE_FAULTS = frozenset((
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EMFILE,
    errno.ENAMETOOLONG, errno.ENFILE, errno.ENODEV, errno.ENOENT, errno.ENOMEM, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS, errno.ESTALE, errno.ETXTBSY,
))
WHAT_TO_DO = {
    errno.EDQUOT: "Free space within the quota, or name another folder.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENOSPC: "Free space on that disk, or name a folder on another disk.",
    errno.EROFS: "Name a writable folder.",
    errno.EACCES: "Change its permissions, or name another path.",
    errno.EPERM: "Change its permissions, or name another path.",
}

NO_MEMORY = "out of memory. Lower --max-tokens-per-stream or --batch-size, or use a smaller base."


class Formatter(argparse.HelpFormatter):
    """Help in which usage, titles and flags fit the terminal, too."""

    def start_section(self, heading):
        super().start_section("\n".join(textwrap.wrap(heading or "", self._width - 1)))

    def _format_usage(self, usage, actions, groups, prefix):
        text = super()._format_usage(usage, actions, groups, prefix)
        return text if usage is None else _within(text.strip(), self._width, " " * 7) + "\n\n"

    def _format_action_invocation(self, action):
        indent = self._current_indent
        return _within(super()._format_action_invocation(action), self._width - indent, " " * (indent + 4))


def _within(text: str, width: int, indent: str) -> str:
    """`text` wrapped to `width` after blanks and commas, with `indent` before all lines but the first."""
    lines = [""]
    for piece in re.split(r"(?<=[, ])(?=\S)", text):
        if lines[-1].strip() and len((lines[-1] + piece).rstrip()) > width:
            lines.append(indent)
        lines[-1] += piece
    return "\n".join(map(str.rstrip, lines))


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` and accepts no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Formatter, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\nRun `{self.prog} --help` for all flags.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns: the exit code.
    """
    here = job.current()
    if here.rank:  # only the first of several processes prints
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    try:
        with _sigterm_stops(), runtime.undisturbed_libraries():
            code = _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt as stop:  # also while another error is being handled
        print("\nInterrupted.", file=sys.stderr)
        code = exit_code(stop)
    if code and here.several:
        job.end(here, "", code)
    return code


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Within the block SIGTERM acts like Ctrl-C, so that half-written files are removed."""
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
        # If standard output is not UTF-8, characters it lacks are escaped instead of fatal.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _failed(str(error))
    except BrokenPipeError:
        # Buffered output would raise again when the interpreter closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        return _failed(NO_MEMORY)
    except OSError as error:
        if error.errno not in MACHINE_FAULTS:
            return _bug()
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        advice = WHAT_TO_DO.get(error.errno, "")
        return _failed(f"{where}{error.strerror}. {advice}".rstrip())
    except Exception as error:
        # Jittor raises an operator's exceptions as these.
        return _failed(NO_MEMORY) if "std::bad_alloc" in str(error) else _bug()


def _run(argv: list[str]) -> int:
    parser = Parser(prog="jittor-lora", description="LoRA fine-tuning of GPT-2 and Llama-family models on Jittor.")
    parser.add_argument("--version", action="version", version=f"jittor-lora {__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB [flags]")
    verb = next((argument for argument in argv if not argument.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        from jittor_lora.settings.names import did_you_mean, nearest  # needed after a mistake only
        raise UserError(f"no such verb: {verb!r}{did_you_mean(nearest(verb, VERBS))}\nVerbs: {', '.join(VERBS)}.")
    if job.current().several and verb is not None and verb not in IN_RANKS:
        raise UserError(f"only {' and '.join(IN_RANKS)} run under mpirun; run {verb} without it.")
    # Only the requested verb is imported, with whatever its flags need.
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
    from jittor_lora.settings.names import did_you_mean, nearest  # needed after a mistake only
    flags = {flag.lstrip("-"): flag for action in parser._actions for flag in action.option_strings}
    lines = []
    for before, argument in zip(["", *arguments], arguments):
        name = argument.split("=")[0]
        if argument.startswith("-"):
            lines.append(f"no such flag: {name}{did_you_mean(flags.get(nearest(name.lstrip('-'), flags)))}")
        elif not before.startswith("-"):  # else it is the value of the unknown flag
            lines.append(f"{argument!r} belongs to no flag; put text with spaces in quotes")
    return "\n".join([*lines, f"Run `{parser.prog} --help` for all flags."])


def _failed(message: str) -> int:
    return _ended(f"jittor-lora: {message}", 2)


def _bug() -> int:
    return _ended(f"{traceback.format_exc()}\njittor-lora: this is a bug in jittor-lora, not an error in your "
                  "input. Please report it with the lines above and the output of `jittor-lora doctor`.", 1)


def _ended(text: str, code: int) -> int:
    here = job.current()
    if here.several:
        job.end(here, text, code)
    print(text, file=sys.stderr)
    return code
