"""Tests whose optional part is absent are skipped and counted, or fail if they must run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REASON = "needs Open MPI: apt-get install openmpi-bin libopenmpi-dev"


@pytest.fixture
def run(tmp_path):
    """Run a test that needs MPI with an empty PATH: exit code and output."""
    def run(*options: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "cannot_run_on_ranks", *options,
                               "tests/system/test_mpi.py"], cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout
    return run


def test_absent_parts_are_skipped_and_counted_by_reason(run):
    code, said = run()
    assert code == 0 and f"    1 skipped: {REASON}\n" in said, said


def test_absent_parts_fail_if_they_must_run(run):
    code, said = run("--must-run", "browser,mpi")
    assert code == 1 and REASON in said and "skipped: " not in said, said


def test_an_unknown_part_is_refused(run):
    code, said = run("--must-run", "mpi,broswer")
    assert code == 4 and "--must-run: expected some of mpi, browser, " in said and "found broswer" in said, said
