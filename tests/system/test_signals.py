"""Signals outside the main thread, where Python's `signal` refuses to set handlers."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from jittor_lora.training.interruption import interruption_noticed

IN_A_THREAD = """
import signal, sys, threading
def in_a_thread(work):
    failed = []
    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)
    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", IN_A_THREAD + code], capture_output=True, text=True, timeout=300)


def in_another_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_run_in_another_thread_gets_no_signals():
    def run():
        with interruption_noticed() as interrupted:
            return interrupted()

    assert in_another_thread(run) is None


def test_jittor_imported_in_another_thread_leaves_signals_alone():
    done = python("""
def import_jittor():
    from jittor_lora.system.runtime import jt
    jt.ones(2).sync()
in_a_thread(import_jittor)
import subprocess
child = subprocess.Popen(["sleep", "60"]); child.kill(); child.wait()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
""")
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_handlers_set_by_c_code_are_undone_in_any_thread():
    done = python("""
import ctypes
from jittor_lora.system.signals import handlers_kept
IGNORE = 1  # SIG_IGN, which Python's table then knows nothing of
def ignored():
    with handlers_kept([signal.SIGTERM]):
        ctypes.CDLL(None).signal(signal.SIGTERM, IGNORE)
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
in_a_thread(ignored)
signal.raise_signal(signal.SIGTERM)
""")
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGTERM"])
def test_a_default_handler_is_set_in_any_thread(name):
    done = python(f"""
from jittor_lora.system.signals import handle_by_default
signal.signal(signal.{name}, lambda *_: print("handled"))
in_a_thread(lambda: handle_by_default([signal.{name}]))
signal.raise_signal(signal.{name})
""")
    assert (done.returncode, done.stdout) == (-signal.Signals[name], ""), done.stderr
