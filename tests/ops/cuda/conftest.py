from __future__ import annotations

import pytest

from cuda_emulator import emulated


@pytest.fixture(scope="module")
def on_the_emulator():
    """`ops` runs on the emulated CUDA backend."""
    with emulated():
        yield
