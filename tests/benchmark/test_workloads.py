"""Contenders compute the same: padded batches contain what streams contain."""

from __future__ import annotations

import numpy as np

import tiny
from jittor_lora.benchmark import workloads
from jittor_lora.data.stream import build_stream


def test_padded_examples_are_the_separate_examples_of_a_stream():
    groups = tiny.groups(6, branches=4)
    stream = build_stream(groups, share_prefixes=False)
    tokens, labels = workloads.padded(workloads.examples(groups))
    starts = np.flatnonzero(stream.positions == 0)
    for row, (start, end) in enumerate(zip(starts, [*starts[1:], len(stream.tokens)])):
        count = end - start
        assert tokens[row, :count].tolist() == stream.tokens[start:end].tolist()
        assert (labels[row, count:] == workloads.IGNORED).all()
        scored = np.flatnonzero(labels[row] != workloads.IGNORED)
        here = (stream.label_rows >= start) & (stream.label_rows < end)
        assert (scored + start).tolist() == stream.label_rows[here].tolist()
        assert labels[row, scored].tolist() == stream.labels[here].tolist()


def test_every_example_is_once_in_an_epoch():
    examples = workloads.examples(tiny.groups(20, branches=5))
    for order in ("random", "length"):
        epochs = [list(workloads.padded_batches(examples, order, epoch)) for epoch in (0, 0, 1)]
        assert epochs[0] == epochs[1] != epochs[2]
        for batches in epochs:
            assert sorted(e for batch in batches for e in batch) == sorted(examples)
            assert {len(batch) for batch in batches} <= {workloads.BATCH_SIZE, len(examples) % workloads.BATCH_SIZE}
    paddings = {order: sum(max(map(len, batch)) * len(batch) - sum(map(len, batch))
                           for batch in workloads.padded_batches(examples, order, 0)) for order in ("random", "length")}
    assert paddings["length"] < paddings["random"]


def test_first_questions():
    groups = tiny.groups(20, branches=5)
    wanted = workloads.examples(groups)[:7]
    assert workloads.examples(workloads.first_questions(groups, 7)) == wanted
    assert workloads.examples(workloads.first_questions(groups, 1000)) == workloads.examples(groups)


def test_only_the_last_rows_are_scored():
    _, labels = workloads.step_tokens((2, 10), 61)
    assert (workloads.scored(labels, "all") == labels).all()
    kept = workloads.scored(labels, "answer") != workloads.IGNORED
    assert kept.sum(1).tolist() == [workloads.ANSWER_ROWS] * 2 and kept[:, -workloads.ANSWER_ROWS :].all()


def test_adapter_values_depend_on_the_name_alone():
    shapes = {"a.lora_A": (2, 3), "a.lora_B": (4, 2)}
    both, one = workloads.adapter_values(shapes), workloads.adapter_values({"a.lora_B": (4, 2)})
    assert (both["a.lora_B"] == one["a.lora_B"]).all()
    assert all(values.any() for values in both.values())
