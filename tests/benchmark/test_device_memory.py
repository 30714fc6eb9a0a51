"""Memory in use on a GPU, asked of a driver made for this test."""

from __future__ import annotations

import subprocess

from jittor_lora.benchmark.device_memory import meter
from jittor_lora.system import machine

DRIVER = """
static int device[2], fails;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) { *handle = device + index; return index > 1; }
int nvmlDeviceGetMemoryInfo(void* handle, unsigned long long* memory) {
    memory[0] = 1000ull << 20, memory[1] = 300ull << 20, memory[2] = (handle == device ? 700ull : 8ull) << 20;
    return 0;
}
"""


def test_the_first_visible_device_is_asked(tmp_path):
    source, library = tmp_path / "driver.c", str(tmp_path / "driver.so")
    source.write_text(DRIVER)
    subprocess.run([machine.compiler({}), "-x", "c", "-shared", "-fPIC", "-o", library, source], check=True)
    assert meter({}, library)() == 700.0
    assert meter({"CUDA_VISIBLE_DEVICES": "1,0"}, library)() == 8.0
    assert meter({"CUDA_VISIBLE_DEVICES": "GPU-0a1b"}, library)() == 700.0
    assert meter({"CUDA_VISIBLE_DEVICES": "7"}, library) is None
    assert meter({}, str(tmp_path / "none.so")) is None
