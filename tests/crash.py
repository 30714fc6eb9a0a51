"""Training runs that are killed or meet system faults, and what must hold for the files they leave.

A run takes a second: a server that has imported everything forks a process for each. For any number of kills:

    PYTHONPATH=src:tests python tests/crash.py --kills 200 --seed 1
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import small_run
from jittor_lora.files.atomic import _LEFTOVER
from jittor_lora.formats.safetensors_file import SafetensorsFile
from jittor_lora.formats.training_state import checkpoints, read_state

STEPS = 12
FIXED = ["--max-steps", str(STEPS), "--learning-rate", "0.01", "--precision", "fp32"]
# An epoch is five steps. The variants cover everything that a resumed run has to do like an uninterrupted one.
VARIANTS = {
    "accumulation": ["--batch-size", "3", "--gradient-accumulation", "2", "--lora-dropout", "0.1", "--eval-every", "3"],
    "streams": ["--batch-size", "6", "--max-tokens-per-stream", "128", "--max-tokens", "100", "--lora-dropout", "0.2",
                "--eval-every", "4", "--lora-use-dora"],
    "separate": ["--batch-size", "6", "--no-share-prefixes", "--no-whole-paragraphs", "--eval-every", "2",
                 "--lora-init", "pissa", "--prompt-loss-weight", "0.3"],
    "whole-model": ["--batch-size", "6", "--method", "full", "--eval-every", "3", "--activation-checkpointing"],
    "early-stop": ["--batch-size", "6", "--eval-every", "1", "--patience", "2", "--learning-rate", "0.3"],
}
ANY_THREADS = ("accumulation", "early-stop")  # the others keep the number they started with
RESULTS = ("train_loss.txt", "val_loss.txt", "adapter/adapter_model.safetensors", "model/model.safetensors",
           "best/adapter_model.safetensors", "best/model.safetensors")
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


# --- the server, and the processes it forks --------------------------------------------------------------------------


def serve() -> None:
    """Read one request per line; answer with the process id and, once the process has ended, its exit code."""
    import jittor_lora.tasks.evaluate
    import jittor_lora.tasks.merge
    import jittor_lora.tasks.train  # noqa: F401
    from jittor_lora.ops.cpu import backend  # noqa: F401
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(request: dict) -> None:
    """Run the command line in this process, and exit."""
    from jittor_lora.cli.main import main
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, descriptor in enumerate((nothing, nothing, log)):
        os.dup2(descriptor, number)
    sys.stdin = open(0, closefd=False)
    if request["memory"]:
        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + request["memory"] * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if request["folder"]:
        count_files(request["folder"], request["at"], request["fault"], request["count"])
    try:
        code = main(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def count_files(folder: str, at: int, fault: str, report: str) -> None:
    """Count the operations on files in `folder`, and replace number `at` by `fault`.

    Args:
        fault: "kill", "MemoryError", or the name of a system error, such as "ENOSPC".
        report: a file for the count.
    """
    seen = 0
    descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def happens(path: object) -> None:
        nonlocal seen
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not os.path.abspath(os.fsdecode(path)).startswith(folder):
            return
        seen += 1
        os.pwrite(descriptor, str(seen).encode(), 0)
        if seen != at:
            return
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "MemoryError":
            raise MemoryError
        number = getattr(errno, fault)
        raise OSError(number, os.strerror(number), os.fsdecode(path))

    def hook(event: str, arguments: tuple) -> None:
        if event in FILE_EVENTS and isinstance(arguments[0], (str, bytes, os.PathLike, int)):
            happens(arguments[0])

    def counted(function: Callable, path_of: Callable) -> Callable:
        def call(*arguments, **options):
            happens(path_of(*arguments))
            return function(*arguments, **options)
        return call

    sys.addaudithook(hook)
    os.fsync = counted(os.fsync, lambda descriptor: descriptor)

    class Writer:
        """A file whose writes are counted."""

        def __init__(self, stream):
            self._stream = stream

        def __getattr__(self, name):
            return getattr(self._stream, name)

        def __enter__(self):
            self._stream.__enter__()
            return self

        def __exit__(self, *error):
            return self._stream.__exit__(*error)

        def write(self, content):
            happens(self._stream.fileno())
            return self._stream.write(content)

        def writelines(self, lines):
            for line in lines:
                self.write(line)

    real_fdopen, real_open = os.fdopen, builtins.open
    os.fdopen = lambda *a, **k: Writer(real_fdopen(*a, **k))
    builtins.open = lambda file, mode="r", *a, **k: (Writer(real_open(file, mode, *a, **k)) if set(mode) & set("wax")
                                                     else real_open(file, mode, *a, **k))


class Server:
    """Starts runs, one at a time."""

    def __init__(self):
        self._process = subprocess.Popen([sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, text=True,
                                         stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout.readline() == "ready\n"
        self._running = False

    def start(self, arguments: list[str], log: Path, folder: Path | None = None, at: int = 0, fault: str = "",
              memory: int = 0) -> int:
        """Start a process that runs the command line, and return its id; see `count_files` for the rest.

        Args:
            memory: MiB it may allocate beyond what it has at the start; 0 for no limit.
        """
        if self._running:  # left by a failed test
            self.end()
        request = {"arguments": arguments, "log": str(log), "folder": folder and str(folder), "at": at, "fault": fault,
                   "memory": memory, "count": str(log) + ".count"}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        self._running = True
        return int(self._process.stdout.readline())

    def end(self) -> int:
        """Wait for the process and return its exit code, negative if it was killed."""
        self._running = False
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextlib.contextmanager
def server() -> Iterator[Server]:
    one = Server()
    try:
        yield one
    finally:
        one.close()


# --- what must hold -------------------------------------------------------------------------------------------------


@dataclass
class Whole:
    """An uninterrupted run: its arguments without output, its files, and its state after each step."""

    name: str
    arguments: list[str]
    results: dict[str, bytes]
    states: dict[int, tuple[dict[str, bytes], dict]]
    events: int = 0
    seconds: float = 1.0


def make_whole(one: Server, files: Path, name: str) -> Whole:
    """The uninterrupted run of a variant, in `files`."""
    arguments = ["train", "--base", str(files / "base"), "--data", str(files / "train.json"), "--dev",
                 str(files / "dev.json"), *FIXED, *VARIANTS[name]]
    folder, started = files / f"whole-{name}", time.monotonic()
    one.start([*arguments, "--output", str(folder), "--save-every", "1", "--keep-checkpoints", "99", "--threads", "2",
               "--overwrite"], files / f"whole-{name}.log", folder)
    assert one.end() == 0, (files / f"whole-{name}.log").read_text()
    return Whole(name, arguments, results(folder), {step: state_in(path) for step, path in
                                                   checkpoints(folder / "checkpoints")},
                 int((files / f"whole-{name}.log.count").read_text()), time.monotonic() - started)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS if (folder / name).is_file()}


def state_in(path: Path) -> tuple[dict[str, bytes], dict]:
    state = read_state(path)
    return {name: array.tobytes() for name, array in state.arrays.items()}, state.values["progress"]


def check(folder: Path, whole: Whole) -> int:
    """Compare the files of a run stopped anywhere with the uninterrupted one; return the step of its newest checkpoint.

    Every checkpoint is readable and equal, bit for bit, to the uninterrupted run's after that step; the logs have the
    same numbers at least up to there; an adapter or model that can be found is one that the run has had.
    """
    newest = 0
    for step, path in checkpoints(folder / "checkpoints"):
        assert state_in(path) == whole.states[step], f"{path} differs"
        newest = step
    for name in ("train_loss.txt", "val_loss.txt"):
        path = folder / name
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        assert lines == whole.results[name].split(b"\n")[: len(lines)], f"{name} differs"
        assert name != "train_loss.txt" or len(lines) >= newest, f"{name} is shorter than the checkpoint"
    known = [Counter(array for name, array in arrays.items() if name.startswith("adapter."))
             for arrays, _ in whole.states.values()]
    for part in ("adapter", "best"):
        if (folder / part / "adapter_config.json").exists():
            json.loads((folder / part / "adapter_config.json").read_text())
            weights = SafetensorsFile(folder / part / "adapter_model.safetensors")
            if "pissa" not in whole.arguments:  # saved in another form
                found = Counter(array.tobytes() for array in weights.values())
                assert found in known or newest == 0, f"{part} is not a state of the run"
    for part in ("model", "best"):
        if (folder / part / "config.json").exists():
            json.loads((folder / part / "config.json").read_text())
            json.loads((folder / part / "tokenizer.json").read_text())
            assert len(SafetensorsFile(folder / part / "model.safetensors")) > 10
    for name in ("config.yaml", "summary.json"):
        assert not (folder / name).exists() or (folder / name).read_text().endswith("\n"), f"{name} is cut"
    return newest


def check_end(folder: Path, whole: Whole) -> None:
    """Compare a run continued to its end with the uninterrupted one; nothing half-written is left."""
    assert check(folder, whole) == max(whole.states)
    found = results(folder)
    assert found.keys() == whole.results.keys()
    different = [name for name in found if found[name] != whole.results[name]]
    assert not different, f"{different} differ"
    left = [path for path in folder.rglob("*") if _LEFTOVER.fullmatch(path.name) or path.name == ".lock"]
    assert not left, f"{left} are left"


# --- a storm of kills ------------------------------------------------------------------------------------------------


@dataclass
class Report:
    kills: Counter = field(default_factory=Counter)  # by the way they were timed
    runs: Counter = field(default_factory=Counter)  # finished, by variant
    kept_steps: int = 0  # that resumed runs did not have to repeat


def storm(folder: Path, kills: int, seed: int, names: Sequence[str] = tuple(VARIANTS),
          say: Callable[[str], None] = lambda line: None) -> Report:
    """Kill runs at random moments, and at random file operations, until `kills` have hit one.

    Each run is resumed after each kill, sometimes with another number of threads, until it ends.

    Raises:
        AssertionError: a state was lost or is damaged, or a run did not end like the uninterrupted one.
    """
    draw, report = random.Random(seed), Report()
    files = small_run.make_files(folder, 14, 4)
    with server() as one:
        wholes = [make_whole(one, files, name) for name in names for _ in range(2)][1::2]  # the first one compiles
        while sum(report.kills.values()) < kills:
            whole = draw.choice(wholes)
            number = sum(report.runs.values())
            output, log = folder / f"run-{number}", folder / f"run-{number}.log"
            arguments = [*whole.arguments, "--output", str(output), "--resume", "--save-every",
                         str(draw.randint(1, 4)), "--keep-checkpoints", str(draw.randint(1, 3))]
            newest, code = 0, -signal.SIGKILL
            while code != 0:
                threads = ["--threads", str(draw.randint(1, 3))] if whole.name in ANY_THREADS else \
                    ["--threads", "2"] if newest == 0 else []  # without the option, as many as before
                enough = sum(report.kills.values()) >= kills
                how = "end" if enough else draw.choice(("time", "files"))
                at = draw.randint(1, whole.events) if how == "files" else 0
                child = one.start([*arguments, *threads], log, output, at, "kill")
                if how == "time":
                    time.sleep(draw.uniform(0, whole.seconds))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                code = one.end()
                assert code in (0, -signal.SIGKILL), log.read_text()
                report.kills[how] += code != 0
                before, newest = newest, check(output, whole)
                assert newest >= before, f"{output}: the checkpoint of step {before} is lost"
                report.kept_steps += newest
            check_end(output, whole)
            report.runs[whole.name] += 1
            say(f"{sum(report.kills.values())} kills, {sum(report.runs.values())} runs")
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as folder:
        print(storm(Path(folder), options.kills, options.seed, say=lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
