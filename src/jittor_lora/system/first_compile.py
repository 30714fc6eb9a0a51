"""Jittor's first import compiles it, which takes minutes: done in a child process, with progress on the screen.

In a child, because a failed or interrupted compile would otherwise end this process: Jittor exits from its own signal
handlers, and calls `sys.exit(0)` after rebuilding its compile helper.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Mapping, Sequence, TextIO

from jittor_lora.errors import UserError
from jittor_lora.system import core_units
from jittor_lora.system.jittor_copy import Copy

# Ends with its parent, however the parent ends, because the pipe on standard input closes. `os.read`, not `sys.stdin`:
# Jittor forks workers, which close `sys.stdin` and would wait for its lock.
CHILD = """
import json, os, signal, sys, threading
sys.path[:] = json.loads(sys.argv[1])
def end_with_parent():
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)
threading.Thread(target=end_with_parent, daemon=True).start()
import jittor
open(sys.argv[2], "w").close()
"""
MINUTES, PLAIN_MINUTES, CUDA_MINUTES = "1 to 3", "2 to 5", "5 to 8"  # on 2 cores
QUIET_SECONDS = 3.0  # before the first output: checking a warm cache takes about a second
LINE_SECONDS = 20.0  # between lines if the screen is not a terminal
PLAIN_FILES, CUDA_FILES = 160, 170  # objects of Jittor 1.3.11
TRIES = 3  # Jittor exits successfully after rebuilding its compile helper
TAIL_LINES = 15
CORES = ("jittor_core*.so", "cu*/jittor_core*.so")  # in Jittor's cache: without CUDA, with CUDA
COMPILED = ("obj_files/*", "jit_utils_core*", "jittor_core*", "data.*", "custom_ops/*")  # in Jittor's cache


def marker(cache: Path, settings: Mapping[str, str]) -> Path:
    """The file that marks that Jittor was compiled in `cache` with `settings` (versions, paths, compile switches)."""
    key = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]
    return cache / f"compiled-{key}"


def is_warm(mark: Path) -> bool:
    return mark.is_file() and any(path for pattern in CORES for path in mark.parent.glob(pattern))


def compile_jittor(mark: Path, environ: Mapping[str, str], screen: TextIO, grouped: Copy | None = None) -> None:
    """Import Jittor in a child process until `mark` exists, with progress on `screen` if it takes long.

    Args:
        grouped: the copy of Jittor, if it compiles the core as large units. If these do not compile, its files are
            compiled one by one.

    Raises:
        UserError: the compile failed, with the end of its output.
    """
    if environ.get("nvcc_path"):
        _compile(mark, environ, CompileProgress(screen, mark.parent, ["cu*/obj_files/*.o"], CUDA_FILES, CUDA_MINUTES))
        return
    if grouped is None or grouped.plain.exists():
        _compile(mark, environ, CompileProgress(screen, mark.parent, ["obj_files/*.o"], PLAIN_FILES, PLAIN_MINUTES))
        return
    objects = core_units.objects(grouped.site / "jittor")
    try:
        _compile(mark, environ, CompileProgress(screen, mark.parent, objects, len(objects), MINUTES))
    except UserError:
        log = mark.parent / "large_units.log"
        os.replace(mark.parent / "first_compile.log", log)
        screen.write(f"Jittor could not be compiled in large units (see {log}); compiling it file by file.\n")
        _compile_plain(mark, environ, screen, grouped)


def _compile_plain(mark: Path, environ: Mapping[str, str], screen: TextIO, copy: Copy) -> None:
    """Removes everything compiled the other way first: its objects contain whole units, or nothing."""
    _remove_compiled(mark.parent)
    copy.plain.touch()
    try:
        compile_jittor(mark, environ, screen, copy)
    except UserError:
        _remove_compiled(mark.parent)
        copy.plain.unlink()
        raise


def _remove_compiled(cache: Path) -> None:
    for pattern in COMPILED:
        for path in cache.glob(pattern):
            path.unlink()


def _compile(mark: Path, environ: Mapping[str, str], progress: CompileProgress) -> None:
    screen, log = progress.screen, mark.parent / "first_compile.log"
    for _ in range(TRIES):
        try:
            status = _run(mark, log, environ, progress)
        except KeyboardInterrupt:
            screen.write("Nothing is broken: the compiled parts are kept, and the same command continues from there.\n")
            raise
        if is_warm(mark):
            return
        if status:
            break
    raise UserError(f"Jittor could not be compiled (exit status {status}). The end of {log}:\n"
                    f"{_tail(log)}\n"
                    "`jittor-lora doctor` checks the compiler, the Python headers, memory and disk.")


def _run(mark: Path, log: Path, environ: Mapping[str, str], progress: CompileProgress) -> int:
    command = [sys.executable, "-c", CHILD, json.dumps(sys.path), str(mark)]
    with open(log, "wb") as output:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                                 env={**environ, "PYTHONUNBUFFERED": "1"},  # so that its last output comes last
                                 start_new_session=True)
    try:
        while child.poll() is None:
            progress.update()
            time.sleep(0.2)
    finally:
        progress.close()
        _end(child)
    return child.returncode


def _end(child: subprocess.Popen) -> None:
    """Kill the rest of the child's process group, which includes its compilers and workers."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.stdin.close()
    child.wait()


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])


class CompileProgress:
    """Elapsed seconds and parts compiled: updated in place on a terminal, elsewhere as occasional lines."""

    def __init__(self, screen: TextIO, cache: Path, patterns: Sequence[str], count: int, minutes: str) -> None:
        """`patterns`: match the files in `cache` that show progress, about `count` in the end."""
        self.screen, self.cache = screen, cache
        self.patterns, self.count, self.minutes = patterns, count, minutes
        self.start = time.monotonic()
        self.next = QUIET_SECONDS
        self.terminal = screen.isatty()
        self.shown = False

    def update(self) -> None:
        elapsed = time.monotonic() - self.start
        if elapsed < self.next:
            return
        if not self.shown:
            self.shown = True
            self._print(f"Compiling Jittor for this machine: once, about {self.minutes} minutes on 2 cores.\n")
        files = sum(1 for pattern in self.patterns for _ in self.cache.glob(pattern))
        text = f"  {elapsed:.0f} s, {files} of about {self.count} parts compiled"
        self._print(f"\r{text}" if self.terminal else f"{text}\n")
        self.next = elapsed + (1.0 if self.terminal else LINE_SECONDS)

    def close(self) -> None:
        if self.shown:
            elapsed = time.monotonic() - self.start
            self._print("\n" if self.terminal else "")
            self._print(f"  finished after {elapsed:.0f} s\n")

    def _print(self, text: str) -> None:
        self.screen.write(text)
        self.screen.flush()
