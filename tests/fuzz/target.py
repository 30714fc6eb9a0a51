"""Drives the worker: cases go in, verdicts come out, even if the worker dies or hangs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from fuzz.case import Files, lay, save

HANGS = 30.0  # seconds after which a reader counts as hanging; CPU time has its own limit
_TESTS = Path(__file__).parents[1]


class Target:
    """One worker after another, and the outcomes of the cases.

    Attributes:
        counts: reader → number of cases "read", "refused" and "finding".
        slowest: reader → seconds of CPU time.
        findings: "reader-what" → (files, message), the first case of each.
    """

    def __init__(self):
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._place = tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory)
        self.root = Path(self._place.name)
        self.counts: dict[str, Counter] = defaultdict(Counter)
        self.slowest: dict[str, float] = defaultdict(float)
        self.findings: dict[str, tuple[Files, str]] = {}
        self._process: subprocess.Popen | None = None
        (self.root / "outside").mkdir()
        (self.root / "outside" / "file").write_bytes(b"not to be touched")

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._place.cleanup()

    def read(self, reader: str, files: Files) -> dict:
        """The verdict on a case: kind ("read", "refused", "finding"), key, told, seconds."""
        folder = self.root / "case"
        lay(files, folder)
        verdict = self._ask(reader, folder)
        outside = {path.name: path.read_bytes() for path in (self.root / "outside").iterdir()}
        if outside != {"file": b"not to be touched"}:
            verdict = {"kind": "finding", "key": "outside-changed", "told": repr(outside), "seconds": 0.0}
        self.counts[reader][verdict["kind"]] += 1
        self.slowest[reader] = max(self.slowest[reader], verdict["seconds"])
        if verdict["kind"] == "finding":
            self.findings.setdefault(f"{reader}-{verdict['key']}", (files, verdict["told"]))
        return verdict

    def save_findings(self, folder: Path) -> None:
        for name, (files, told) in self.findings.items():
            save(files, folder / name, told)

    def _ask(self, reader: str, folder: Path) -> dict:
        if self._process is None:
            self._start()
        try:
            self._process.stdin.write(json.dumps([reader, str(folder)]) + "\n")
            self._process.stdin.flush()
            if select.select([self._process.stdout], [], [], HANGS)[0]:
                line = self._process.stdout.readline()
                if line:
                    return json.loads(line)
        except BrokenPipeError:
            pass
        hangs = self._process.poll() is None
        code = self._end()
        what = "hangs" if hangs and code == -signal.SIGKILL else f"dies-{code}"
        return {"kind": "finding", "key": what, "told": what, "seconds": HANGS if hangs else 0.0}

    def _start(self) -> None:
        path = os.pathsep.join([str(_TESTS), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, cwd=self.root,
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false",
                 # Arrow's allocators and threads reserve more addresses than the limit allows.
                 "ARROW_DEFAULT_MEMORY_POOL": "system", "ARROW_IO_THREADS": "1", "MALLOC_ARENA_MAX": "1",
                 "RUST_BACKTRACE": "0",
                 "MPLCONFIGDIR": str(self.root / "matplotlib")})
        assert json.loads(self._process.stdout.readline()) == {"ready": True}

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            process.stdin.close()
            code = process.wait(timeout=0.5)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code
