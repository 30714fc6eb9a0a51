from __future__ import annotations

import pytest

from jittor_lora.errors import UserError
from jittor_lora.lora.config import LoraConfig


def test_scaling_is_alpha_over_r():
    assert LoraConfig(r=16, alpha=8.0).scaling == 0.5


def test_all_that_is_wrong_is_in_one_error():
    with pytest.raises(UserError) as caught:
        LoraConfig(r=0, alpha=-1, dropout=1.0, init="zeros", target_modules=())
    for name in ("r:", "alpha:", "dropout:", "init:", "target_modules:"):
        assert name in str(caught.value)


@pytest.mark.parametrize("settings", [{"r": 4097}, {"r": -3}, {"alpha": 0}, {"alpha": float("inf")},
                                      {"alpha": float("nan")}, {"dropout": -0.1}, {"dropout": float("nan")},
                                      {"target_modules": ""}])
def test_values_out_of_range(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        LoraConfig(**settings)
