"""The NVIDIA driver and its devices, asked through the driver's own library. Nothing here imports Jittor."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
# Compute capability -> the cards that have it.
_SERIES = {(6, 1): "as GTX 10", (7, 0): "as V100", (7, 5): "as RTX 20, GTX 16 and T4", (8, 0): "as A100",
           (8, 6): "as RTX 30 and A10", (8, 9): "as RTX 40 and L4", (9, 0): "as H100 and H200", (10, 0): "as B200",
           (10, 3): "as B300", (12, 0): "as RTX 50"}


@dataclass(frozen=True)
class Card:
    """A device: its name, compute capability and bytes of memory."""

    name: str
    capability: tuple[int, int]
    memory: int

    @property
    def arch(self) -> int:
        """The capability as in sm_86."""
        return 10 * self.capability[0] + self.capability[1]

    def __str__(self) -> str:
        series = _SERIES.get(self.capability)
        return (f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]}"
                f"{f', {series}' if series else ''}; {self.memory / 2**30:.1f} GiB)")


@dataclass(frozen=True)
class Driver:
    """`cuda`: the newest CUDA that the driver runs; `problem`: why it offers no device, empty if it offers one."""

    cuda: tuple[int, int] = (0, 0)
    cards: tuple[Card, ...] = ()
    problem: str = ""


def ask(library: str = LIBRARY) -> Driver:
    """Ask the driver for its devices, in the order that CUDA_VISIBLE_DEVICES leaves them."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return Driver(problem=f"no NVIDIA driver ({library} cannot be loaded)")
    count = ctypes.c_int()
    status = driver.cuInit(0)
    if status or driver.cuDeviceGetCount(ctypes.byref(count)):
        return Driver(problem=f"the NVIDIA driver does not start (cuInit: {status})")
    if not count.value:
        return Driver(problem="the NVIDIA driver reports no device")
    version = _integer(driver.cuDriverGetVersion)
    return Driver((version // 1000, version % 1000 // 10), tuple(_card(driver, n) for n in range(count.value)))


def _card(driver: ctypes.CDLL, number: int) -> Card:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = [_integer(driver.cuDeviceGetAttribute, attribute, device)
                  for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)]
    return Card(name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value)


def _integer(function: ctypes._CFuncPtr, *arguments: object) -> int:
    value = ctypes.c_int()
    function(ctypes.byref(value), *arguments)
    return value.value
