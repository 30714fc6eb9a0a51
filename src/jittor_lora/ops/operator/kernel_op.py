"""The operator through which Jittor calls the kernels of a backend (kernel_op.h, kernel_op.cc).

Jittor compiles an operator for each combination of source, number of inputs, axes and types, which takes one to two
seconds at its first use. This one is compiled once, whatever it calls. Each call is cheaper, too: Jittor builds no key
for it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Callable, Sequence

from jittor_lora.errors import UserError
from jittor_lora.system.locks import alone
from jittor_lora.system.runtime import jt, kernel_tools

HERE = Path(__file__).parent


class Caller:
    """Calls the kernels of a library, each a `JL_OPERATOR` (call.h), as operators of Jittor.

    Args:
        library: returns the library; asked at each call.
        on_device: do its kernels read and write the memory of a GPU?
    """

    def __init__(self, library: Callable[[], ctypes.CDLL], on_device: bool = False):
        self._library, self._on_device = library, on_device
        self._addresses: dict[str, int] = {}

    def __call__(self, kernel: str, shapes: Sequence[Sequence[int]], inputs: Sequence[jt.Var],
                 *numbers: float) -> Sequence[jt.Var]:
        """Run `JL_OPERATOR(kernel)`; returns its outputs, float32 of these shapes."""
        library = self._library()
        address = self._addresses.get(kernel)
        if address is None:
            found = getattr(library, f"jl_operator_{kernel}")
            address = self._addresses[kernel] = ctypes.cast(found, ctypes.c_void_p).value
        return kernel_op()(address, self._on_device, list(inputs), list(shapes), [float(number) for number in numbers])


def works(library: Callable[[], ctypes.CDLL]) -> bool:
    """Do a library and the operator that calls it compile and load here? Where not, a message says why."""
    try:
        library()
        kernel_op()
    except (UserError, OSError) as error:
        print(f"{error}\nContinuing without them, several times slower.", file=sys.stderr)
        return False
    return True


@functools.lru_cache(maxsize=None)
def kernel_op():
    """The operator, compiled into Jittor's cache at its first use on a machine.

    Raises:
        UserError: it cannot be compiled.
    """
    header = (HERE / "kernel_op.h").read_text(encoding="utf-8")
    source = (HERE / "kernel_op.cc").read_text(encoding="utf-8")
    source = source.replace('#include "call.h"\n', (HERE / "call.h").read_text(encoding="utf-8"))
    with alone(kernel_tools().cache / "kernel_op.lock", "Compiling the operator of the fused kernels"):
        try:
            return jt.compile_custom_op(header, source, "kernel", warp=False)
        except RuntimeError as error:
            raise UserError(f"The operator of the fused kernels could not be compiled: {error}\n"
                            "`jittor-lora doctor` checks the compiler.") from error
