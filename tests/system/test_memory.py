from __future__ import annotations

import numpy as np
import pytest

from jittor_lora.system import memory

MIB = 1 << 20


def make(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(("files", "expected"), [
    ({}, 4096 * MIB),
    ({"memory.max": "max\n", "memory.current": "5000000000\n"}, 4096 * MIB),
    ({"memory.max": f"{1024 * MIB}\n", "memory.current": f"{600 * MIB}\n"}, 424 * MIB),
    ({"memory.max": f"{1024 * MIB}", "memory.current": f"{600 * MIB}",
      "memory.stat": f"anon 1\ninactive_file {100 * MIB}\n"}, 524 * MIB),
    ({"memory.max": f"{1024 * MIB}", "memory.current": f"{1030 * MIB}"}, 0),
    ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "77"}, 4096 * MIB),
    ({"memory/memory.limit_in_bytes": f"{512 * MIB}", "memory/memory.usage_in_bytes": f"{200 * MIB}",
      "memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {50 * MIB}\n"}, 362 * MIB),
    ({"memory.max": "nonsense", "memory.current": ""}, 4096 * MIB),
])
def test_available_memory_is_that_of_the_container(tmp_path, files, expected):
    make(tmp_path, {**files, "meminfo": "MemTotal: 9999999 kB\nMemAvailable:    4194304 kB\n"})
    assert memory.available(tmp_path / "meminfo", tmp_path) == expected


def test_without_the_kernels_files(tmp_path):
    assert memory.available(tmp_path / "none", tmp_path) > 0
    assert memory.resident(tmp_path / "none") == memory.peak(tmp_path / "none") == 0


def test_the_peak_of_this_process():
    memory.reset_peak()
    before = memory.resident()
    block = np.ones(64 * MIB, np.uint8)
    del block
    assert before > 10 * MIB
    assert memory.peak() - before > 60 * MIB
