"""The golden files are what transformers and PEFT give today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity.make_golden import golden

pytestmark = pytest.mark.parity


def test_golden_files_are_up_to_date():
    stored = np.load(Path(__file__).parent.parent / "golden" / "networks.npz")
    computed = golden()
    assert set(stored) == set(computed)
    for name, array in computed.items():
        np.testing.assert_allclose(stored[name], array, rtol=0, atol=1e-5 * max(1.0, np.abs(array).max()), err_msg=name)
