"""Runs the PyTorch side, a script in the output folder, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from jittor_lora.alignment.record import PYTORCH
from jittor_lora.errors import UserError
from jittor_lora.system.runtime import environment

SCRIPT = "pytorch_twin.py"
PACKAGES = ("torch", "transformers", "peft")
_SHOWN_LINES = 30  # of a script that failed
_PATIENCE = 10.0  # seconds
_FIND = ("import importlib.util, json, sys; "
         "print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))")


def script_text(path: Path | None) -> str:
    """The script in `path`, by default the shipped one.

    Raises:
        UserError: it cannot be read.
    """
    path = path or Path(__file__).with_name(SCRIPT)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--twin {path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--twin {path}: expected a Python script in UTF-8, found byte "
                        f"0x{error.object[error.start]:02x} at position {error.start}.") from error


def checked_python(python: str) -> str:
    """`python`, as it can be run from any folder.

    Raises:
        UserError: it does not run, or lacks a package that the script needs.
    """
    if os.sep in python:
        python = os.path.abspath(python)
    try:
        done = subprocess.run([python, "-c", _FIND, *PACKAGES], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, env=_variables(1))
        missing = json.loads(done.stdout)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or done.stderr.strip().rpartition("\n")[2] or f"code {done.returncode}"
        raise UserError(f"--python {python}: is not a Python that runs ({why}).") from error
    if missing:
        raise UserError(f"{python}: the PyTorch side needs {', '.join(missing)}, which it lacks. Install with `pip "
                        'install "jittor-lora[align]"`, or name another Python with --python. For --with TRAIN_LOG, '
                        "which lays the log of a run of your own over ours, nothing is needed.")
    return python


def run_there(folder: Path, python: str, threads: int) -> None:
    """Run the script of `folder`; what it prints appears on standard error.

    Raises:
        UserError: it failed, or left no record.
    """
    last: deque[str] = deque(maxlen=_SHOWN_LINES)
    # In a session of its own, so that Ctrl-C reaches this process alone, which ends the script.
    process = subprocess.Popen([python, SCRIPT], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
                               start_new_session=True, env=_variables(threads))
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            print(line, end="", file=sys.stderr, flush=True)
        code = process.wait()
    finally:
        _end(process)
    if code:
        raise UserError("\n  ".join([f"{folder / SCRIPT} ended with code {code}. Its last lines:", *last]))
    if not (folder / PYTORCH).is_dir():
        raise UserError(f"{folder / SCRIPT}: expected it to leave the folder {PYTORCH}/ beside it; found none. Change "
                        "a copy of the shipped script, which writes it last, and give it with --twin.")


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdout.close()


def _variables(threads: int) -> Mapping[str, str]:
    """The script's environment: ours without what was set for Jittor, and without network."""
    chosen = {**environment(), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
              "PYTHONIOENCODING": "utf-8"}
    chosen.pop("OMP_WAIT_POLICY", None)  # PyTorch is faster with its own default
    return chosen
