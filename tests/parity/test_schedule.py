"""The learning rate against transformers' schedulers, step for step."""

from __future__ import annotations

import pytest

from jittor_lora.training.schedule import learning_rate

pytestmark = pytest.mark.parity

PEAK = 3e-4


@pytest.mark.parametrize("schedule, maker, min_ratio", [
    ("linear", "get_linear_schedule_with_warmup", 0.0),
    ("cosine", "get_cosine_schedule_with_warmup", 0.0),
    ("constant", "get_constant_schedule_with_warmup", 0.0),
    ("cosine", "get_cosine_with_min_lr_schedule_with_warmup", 0.1),
])
@pytest.mark.parametrize("total, warmup", [(1, 0), (7, 7), (50, 0), (50, 5), (1000, 60), (10, 20)])
def test_equals_transformers(schedule, maker, min_ratio, total, warmup):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    arguments = {"num_warmup_steps": warmup}
    if schedule != "constant":
        arguments["num_training_steps"] = total
    if min_ratio:
        arguments["min_lr_rate"] = min_ratio
    scheduler = getattr(transformers, maker)(optimizer, **arguments)
    for step in range(total):
        ours = learning_rate(step, total_steps=total, peak=PEAK, warmup_steps=warmup, schedule=schedule,
                             min_ratio=min_ratio)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-20)
        optimizer.step()
        scheduler.step()
