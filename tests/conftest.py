"""What all tests share."""

from __future__ import annotations

import ctypes
import importlib.util
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The first call of a new operator compiles it for seconds.
settings.register_profile("jittor_lora", deadline=None)
settings.load_profile("jittor_lora")

# A shell starts background jobs with Ctrl-C ignored, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PARITY = Path(__file__).parent / "parity"
collect_ignore = [] if importlib.util.find_spec("torch") else [str(PARITY)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if PARITY in item.path.parents:
            item.add_marker(pytest.mark.parity)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Jittor's operators and the kernels make the main thread flush denormals, which hypothesis refuses."""
    module = sys.modules.get("jittor_lora.ops.cpu.library")
    if getattr(item.function, "is_hypothesis_test", False):
        default_environment = ctypes.c_void_p(-1)  # FE_DFL_ENV
        ctypes.CDLL(None).fesetenv(default_environment)
    elif module and module._loaded.cache_info().currsize:
        module.library().jl_flush_denormals()
