"""Operations of a step, counted one product at a time."""

from __future__ import annotations

import tiny
from jittor_lora.benchmark import flops


def test_a_step_of_a_tiny_gpt2():
    config, rank, lengths, label_rows = tiny.config(tiny.GPT2), 4, [5, 3], 6
    d, inner, rows = config.hidden_size, config.intermediate_size, sum(lengths)
    expected = 0.0
    for _ in range(config.layers):
        for fan_in, fan_out in ((d, 3 * d), (d, d), (d, inner), (inner, d)):
            expected += 2 * flops.product(rows, fan_in, fan_out)  # forward, gradient of the input
            expected += 3 * (flops.product(rows, fan_in, rank) + flops.product(rows, rank, fan_out))
        for length in lengths:
            for seen in range(1, length + 1):  # scores and values, each with two products of the backward pass
                expected += 2 * 3 * config.heads * flops.product(1, config.head_dim, seen)
    expected += 2 * flops.product(label_rows, d, config.vocab_size)
    assert flops.training_step(config, lengths, label_rows, rank) == expected
