"""The process that reads: `python -m fuzz.worker`.

Each line of standard input names a reader and a folder; the answer is a line of JSON. Writes outside the folder,
started processes, connections and slow cases are reported; memory has a limit.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

SECONDS = 5.0  # CPU time per case
MEMORY = 1 << 30  # bytes a reader may allocate beyond what the process has
LONGEST_MESSAGE = 20_100
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree",
            "os.chmod", "os.chown"}
# Readers that load into a network, for which Jittor may compile operators.
_NETWORKS = {"load_adapter", "old_adapter", "extras", "state", "summary"}
_COMPILES = {"subprocess.Popen", "os.posix_spawn", "os.fork"}
_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
          "pickle.find_class"}


class TooSlow(BaseException):
    """The CPU time of a case is used up."""


class Watch:
    """Records what happens outside `folder` while it is set."""

    def __init__(self):
        self.folder: str | None = None
        self.allowed: tuple[str, ...] = ()
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        if event in _NEVER and not (self.allowed and event in _COMPILES):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and arguments[2] is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._changed(arguments[0])
        elif event in _CHANGES:
            for path in arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]:
                self._changed(path)

    def _changed(self, path) -> None:
        if isinstance(path, int):
            return
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        real = os.path.join(os.path.realpath(folder), name)
        if real not in (self.folder, os.devnull) and not real.startswith((self.folder + os.sep, *self.allowed)):
            self.seen.append(f"writes {real}")


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    from fuzz.readers import READERS
    from jittor_lora.system.runtime import jittor_home

    watch, caches = Watch(), (str(jittor_home() / ".cache" / "jittor"), os.environ["MPLCONFIGDIR"])
    signal.signal(signal.SIGPROF, _stop)
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        name, folder = json.loads(line)
        watch.allowed = caches if name in _NETWORKS else ()
        print(json.dumps(_read(READERS[name], Path(folder), watch)), file=out)


def _stop(number, frame) -> None:
    raise TooSlow


def _read(reader, folder: Path, watch: Watch) -> dict:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_size() + MEMORY, hard))
    watch.seen, watch.folder = [], str(folder)
    began = time.process_time()
    verdict = {"kind": "read", "key": "", "told": ""}
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        reader(folder)
    except BaseException as error:  # any exception is the result
        signal.setitimer(signal.ITIMER_PROF, 0)
        verdict = _verdict(error, folder)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.folder = None
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    if watch.seen:
        verdict = {"kind": "finding", "key": f"outside-{watch.seen[0].split(' ')[0]}", "told": "\n".join(watch.seen)}
    return {**verdict, "seconds": time.process_time() - began}


def _verdict(error: BaseException, folder: Path) -> dict:
    from jittor_lora.errors import UserError

    if not isinstance(error, UserError):
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "jittor_lora" in frame.filename]
        place = f"{Path(frames[-1].filename).name}-{frames[-1].name}" if frames else "nowhere"
        told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return {"kind": "finding", "key": f"{type(error).__name__}-{place}", "told": told[-6000:]}
    message = str(error)
    wrong = []
    if not all(character.isprintable() or character in "\n\t\u00a0\u3000" for character in message):
        wrong.append("unprintable")
    if len(message) > LONGEST_MESSAGE:
        wrong.append("long")
    if str(folder) not in message:
        wrong.append("nameless")
    if wrong:
        return {"kind": "finding", "key": f"message-{'-'.join(wrong)}", "told": f"{message[:3000]!r}"}
    return {"kind": "refused", "key": "", "told": message}


def _size() -> int:
    """Bytes of address space of the process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
