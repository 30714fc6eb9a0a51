"""Shared by all tests."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

import needs
from jittor_lora.system import machine

WORKER_BYTES = 2 << 30  # memory of a worker and the processes it starts

# The first call of a new operator takes seconds to compile it.
settings.register_profile("jittor_lora", deadline=None)
settings.load_profile("jittor_lora")

# Parallel workers compute on one thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with Ctrl-C ignored, which every process started by the tests would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PARITY = Path(__file__).parent / "parity"
collect_ignore = [] if importlib.util.find_spec("torch") else [str(PARITY)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel-flag", action="append", default=[], help="another flag to compile the CPU kernels with")
    parts = {"default": [], "type": lambda text: text.split(","), "metavar": "PART,..."}
    parser.addoption("--must-run", **parts,
                     help=f"fail tests whose part is absent instead of skipping them: {', '.join(needs.PARTS)}")
    parser.addoption("--needing", **parts, help="only tests that need one of these parts")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`: one worker per core, as far as memory allows."""
    return max(1, min(machine.available_cores(), machine.total_memory() // WORKER_BYTES))


def pytest_configure(config: pytest.Config) -> None:
    for option in ("must_run", "needing"):
        unknown = sorted({*config.getoption(option)} - {*needs.PARTS})
        if unknown:
            raise pytest.UsageError(f"--{option.replace('_', '-')}: expected some of {', '.join(needs.PARTS)}; "
                                    f"found {', '.join(unknown)}")
    if config.getoption("kernel_flag"):
        from jittor_lora.ops.cpu import library  # imports Jittor
        library.FLAGS += tuple(config.getoption("kernel_flag"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if PARITY in item.path.parents:
            item.add_marker(pytest.mark.parity)
    parts = {*config.getoption("needing")}
    if parts:
        others = [item for item in items
                  if parts.isdisjoint(part for mark in item.iter_markers("needs") for part in mark.args)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        (part,) = mark.args
        if not needs.is_there(part):
            end = pytest.fail if part in item.config.getoption("must_run") else pytest.skip
            end(needs.PARTS[part].reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Number of skipped tests by reason."""
    skipped = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", ())
                      if isinstance(report.longrepr, tuple))
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"{count:5,} skipped: {reason.removeprefix('Skipped: ')}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Jittor's operators and the kernels make the main thread flush denormals, which hypothesis refuses."""
    module = sys.modules.get("jittor_lora.ops.cpu.library")
    if getattr(item.function, "is_hypothesis_test", False):
        default_environment = ctypes.c_void_p(-1)  # FE_DFL_ENV
        ctypes.CDLL(None).fesetenv(default_environment)
    elif module and module._loaded.cache_info().currsize:
        module.library().jl_flush_denormals()
