"""Every reader on mutated files, a few seconds each: they are read, or refused with a `UserError` that names the file.

`run.py` does the same for any length of time.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutate import spoil
from fuzz.readers import READERS
from fuzz.seeds import seeds
from fuzz.target import Target

INPUTS = 80  # of each reader


@pytest.fixture(scope="module")
def target():
    with Target() as made:
        yield made


@pytest.fixture(scope="module")
def files():
    return seeds()


@pytest.mark.parametrize("reader", sorted(READERS))
def test_mutated_files_are_read_or_refused(reader, target, files):
    verdict = target.read(reader, files[reader])
    assert verdict["kind"] == "read", verdict["told"]

    @settings(max_examples=INPUTS, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def spoilt(random):
        verdict = target.read(reader, spoil(random, files[reader], sorted(files[reader])))
        assert verdict["kind"] in ("read", "refused"), verdict["told"]

    spoilt()
    # A damaged file in a cache is ignored.
    assert target.counts[reader]["refused"] > 0 or reader == "caches"
