import numpy as np
import pytest

from jittor_lora.errors import UserError
from jittor_lora.tasks import self_test

STEP = {"loss": np.array([4.0, 3.9]), "a.lora_A": np.ones((2, 3))}


def test_a_step_lowers_the_loss_and_is_the_same_each_time():
    one, other = self_test.training_step(), self_test.training_step()
    assert one["loss"][1] < one["loss"][0]
    assert len(one) > 8 and all(np.any(value) for value in one.values())
    assert self_test.compare(one, other) == 0.0


def test_the_portable_operators_pass():
    from jittor_lora import ops

    with ops.portable_operations("activations", "norms"):
        portable = self_test.training_step()
    assert 0.0 < self_test.compare(portable, self_test.training_step()) < 1e-5


@pytest.mark.parametrize("wrong", [0.0, 1.001, np.nan, np.inf])
def test_other_numbers_are_an_error_that_names_the_worst(wrong):
    changed = {**STEP, "a.lora_A": np.full((2, 3), wrong)}
    with pytest.raises(UserError, match="1 of 2 arrays .* a.lora_A by"):
        self_test.compare(changed, STEP)


def test_rounding_is_no_error():
    assert 0 < self_test.compare({**STEP, "a.lora_A": np.full((2, 3), 1 + 1e-6)}, STEP) < 1e-5
