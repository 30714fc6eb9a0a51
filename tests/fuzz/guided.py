"""Fuzz one reader guided by coverage, with atheris: `python tests/fuzz/guided.py READER -max_total_time=600`.

Inputs are mutated as in `run.py`; those that reach new lines are kept and mutated further. The flags after the reader
are libFuzzer's. Atheris is not a dependency of the tests (`pip install atheris`).
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
import warnings
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.case import Files, lay
from fuzz.mutate import spoil
from fuzz.seeds import seeds

LIMITS = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=400000"]


def pack(files: Files) -> bytes:
    """The contents of the files, in order of name, as one input; anything but an ordinary file is empty."""
    contents = [content if isinstance(content, bytes) else b"" for _, content in sorted(files.items())]
    return b"".join(struct.pack("<I", len(content)) + content for content in contents)


def unpack(data: bytes, names: list[str]) -> Files:
    files, at = {}, 0
    for name in sorted(names):
        length = int.from_bytes(data[at : at + 4], "little")
        files[name] = data[at + 4 : at + 4 + length]
        at += 4 + length
    return files


def main() -> None:
    reader, flags = sys.argv[1], sys.argv[2:]
    seed = seeds()[reader]
    with atheris.instrument_imports(include=["jittor_lora"], enable_loader_override=False):
        from fuzz.readers import READERS
        from jittor_lora.errors import UserError
    warnings.simplefilter("ignore")
    place = Path(tempfile.mkdtemp(prefix="guided-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    corpus = place / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(pack(seed))

    def one(data: bytes) -> None:
        lay(unpack(data, list(seed)), place / "case")
        try:
            READERS[reader](place / "case")
        except UserError:
            pass

    def mutate(data: bytes, most: int, number: int) -> bytes:
        return pack(spoil(Random(number), unpack(data, list(seed)), sorted(seed)))[:most]

    atheris.Setup([sys.argv[0], str(corpus), *LIMITS, *flags], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
