from __future__ import annotations

import dataclasses
import gc
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from jittor_lora.data.groups import Branch, TokenGroup
from jittor_lora.data.layout import Layout
from jittor_lora.data.stream import build_stream
from jittor_lora.errors import UserError
from jittor_lora.formats.training_state import TrainingState, read_state, write_state
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.model.modules import leaf_modules
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.ranks import Ranks
from jittor_lora.system.runtime import jt
from jittor_lora.training.batches import due, steps_from, streams_of, total_steps
from jittor_lora.training.gradients import mean_loss, stream_loss
from jittor_lora.training.interruption import interruption_noticed
from jittor_lora.training.log import RunLog
from jittor_lora.training.loop import train
from jittor_lora.training.optimizer import AdamW
from jittor_lora.training.progress import Progress
from jittor_lora.training.schedule import learning_rate
from jittor_lora.training.step import Computation

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "networks.npz")  # made by tests/parity/make_golden.py


def settings(**changes):
    return RunConfig(**{"max_steps": 4, "batch_size": 4, "lora_r": 2, "lora_dropout": 0.0, "learning_rate": 0.01,
                        "warmup_steps": 0, "schedule": "constant", "max_grad_norm": 0.0, "seed": 3, **changes})


def adapted(config, family="gpt2", values=True, scale=1.0, alpha=8.0):
    """A network with an adapter, with arbitrary values or as training starts; its matrices times `scale`."""
    source = tiny.VARIANTS[family]
    tensors = {name: array * np.float32(scale) if array.ndim == 2 else array
               for name, array in tiny.tensors(source).items()}
    model = build_model(tiny.config(source), tensors)
    adapter = inject(model, LoraConfig(r=config.lora_r, alpha=alpha, dropout=config.lora_dropout,
                                       target_modules=DEFAULT_TARGETS[family]))
    if values:
        adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    return model, adapter


class Recorder:
    """In place of the optimiser: records its arguments and changes nothing."""

    def __init__(self):
        self.gradients, self.rates = [], []

    def step(self, gradients, rate, factor):
        self.gradients.append({name: g.numpy() * np.float32(factor) for name, g in gradients.items()})
        self.rates.append(rate)


class Run:
    """One call of `train`, with everything it did."""

    def __init__(self, folder, config, groups, dev=(), model=None, adapter=None, optimizer=None, progress=None,
                 save=None, answer_dev=None):
        if model is None:
            model, adapter = adapted(config)
        self.model, self.adapter, self.folder = model, adapter, folder
        self.optimizer = optimizer or AdamW(adapter.parameters())
        self.progress = progress or Progress()
        self.saved, self.best = [], []
        with RunLog(folder, quiet=True) as log:
            if self.progress.step:
                log.truncate_to(self.progress.step)
            self.outcome = train(model, adapter, groups, list(dev), config, log, self.optimizer, self.progress,
                                 save or (lambda p: self.saved.append(p.step)), lambda p: self.best.append(p.step),
                                 answer_dev)

    def lines(self, name="train_loss.txt"):
        return (self.folder / name).read_text().splitlines()

    @property
    def losses(self):
        return [float(line) for line in self.lines()]

    def arrays(self):
        return {name: p.numpy().copy() for name, p in self.adapter.parameters().items()}


def recorded(folder, groups, family="gpt2", scale=1.0, alpha=8.0, **changes):
    """Loss and gradients of the first step."""
    config = settings(**{"max_steps": 1, **changes})
    run = Run(folder, config, groups, (), *adapted(config, family, scale=scale, alpha=alpha), optimizer=Recorder())
    return run.losses[0], run.optimizer.gradients[0]


# As large as weights are in practice: larger ones (the defaults here) magnify the effect of rounding on gradients.
ORDINARY = {"scale": 0.4, "alpha": 2.0}


def assert_same_step(one, other):
    """Loss and gradient to 1e-6; each array's gradient to 3e-6, as small ones have fewer digits."""
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    all_of_one, all_of_other = (np.concatenate([g.ravel() for g in step[1].values()]) for step in (one, other))
    assert relative(all_of_one, all_of_other) < 1e-6
    for name, gradient in one[1].items():
        assert relative(gradient, other[1][name]) < 3e-6, name


def relative(x, y):
    return np.linalg.norm(x - y) / np.linalg.norm(y)


class Census(AdamW):
    """Counts Jittor's variables after each step."""

    def step(self, gradients, rate, factor):
        super().step(gradients, rate)
        self.alive = [*getattr(self, "alive", []), jt.liveness_info()["lived_vars"]]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_step_leaves_anything_behind(tmp_path, checkpointing):
    config = settings(max_steps=12, batch_size=2, max_tokens_per_stream=16, lora_dropout=0.3)
    model, adapter = adapted(config)
    model.activation_checkpointing = checkpointing
    gc.collect()  # what earlier tests left in cycles
    run = Run(tmp_path, config, tiny.groups(6), (), model, adapter, Census(adapter.parameters()))
    alive = run.optimizer.alive
    assert len(alive) == 12 and max(alive[6:]) == max(alive[:6])


def test_memory_is_given_back_before_a_stream_longer_than_all_before(tmp_path, monkeypatch):
    config = settings(max_steps=10, batch_size=2, seed=4, max_tokens_per_stream=16)
    model, adapter = adapted(config)
    hidden, seen, given_back = model.hidden, [], []

    def noted(tokens, *arguments, **more):
        seen.append(len(tokens))
        return hidden(tokens, *arguments, **more)

    model.hidden = noted
    monkeypatch.setattr(jt, "gc", lambda: given_back.append(len(seen)))
    Run(tmp_path, config, tiny.groups(9), (), model, adapter)
    assert given_back == [i for i, rows in enumerate(seen) if rows > max(seen[:i], default=0)]
    assert 1 < len(given_back) < len(seen)


# --- the loss and its gradient ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loss_and_gradients_are_those_of_peft(tmp_path, family):
    loss, gradients = recorded(tmp_path, tiny.groups(), family, batch_size=100)
    assert loss == pytest.approx(float(GOLDEN[f"{family}/loss"]), rel=2e-6)
    names = {key.split("/")[2] for key in GOLDEN if key.startswith(f"{family}/gradient/")}
    assert names == set(gradients)
    for name in names:
        expected = GOLDEN[f"{family}/gradient/{name}"]
        assert relative(gradients[name], expected) < 2e-5, name


GROUPS = tiny.groups(5)  # 10 questions
SEVERAL = tiny.several(5)  # the same, with several answers
COUNT = sum(len(group.branches) for group in GROUPS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_micro_batches_are_the_same_as_one_big_batch(tmp_path, family, weight):
    """Accumulation by batches, by the size of the streams, and by both; an example alone in a stream too."""
    common = {"groups": GROUPS, "family": family, "prompt_loss_weight": weight, **ORDINARY}
    whole = recorded(tmp_path / "whole", batch_size=COUNT, **common)
    for number, changes in enumerate([
        {"batch_size": 3, "gradient_accumulation": COUNT // 3 + 1},
        {"batch_size": 1, "gradient_accumulation": COUNT},
        {"batch_size": COUNT, "max_tokens_per_stream": 24},
        {"batch_size": 4, "gradient_accumulation": COUNT // 4 + 1, "max_tokens_per_stream": 12},
    ]):
        part = recorded(tmp_path / str(number), **common, **changes)
        assert_same_step(whole, part)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_shared_prefixes_are_the_same_as_separate_examples(tmp_path, family, weight):
    common = {"groups": GROUPS, "family": family, "batch_size": COUNT, "prompt_loss_weight": weight, **ORDINARY}
    shared, apart = recorded(tmp_path / "a", **common), recorded(tmp_path / "b", share_prefixes=False, **common)
    assert_same_step(shared, apart)


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("changes", [{}, {"max_tokens_per_stream": 24}, {"share_prefixes": False}])
def test_several_answers_are_the_same_as_separate_weighted_examples(tmp_path, weight, changes):
    common = {"batch_size": 100, "prompt_loss_weight": weight, **ORDINARY}
    together = recorded(tmp_path / "a", SEVERAL, references="all", **changes, **common)
    assert_same_step(together, recorded(tmp_path / "b", tiny.one_by_one(SEVERAL), **common))
    frequent = recorded(tmp_path / "c", GROUPS, **common)
    assert max(relative(gradient, frequent[1][name]) for name, gradient in together[1].items()) > 0.01


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_loss_is_the_weighted_mean_over_examples_one_by_one(tmp_path, weight):
    model, _ = adapted(settings())
    total = weights = 0.0
    for group in GROUPS:
        for branch in group.branches:
            prompt = group.prefix + branch.prompt
            text = np.array(prompt + branch.completion, np.int32)
            with jt.no_grad():
                hidden = model.hidden(text, np.arange(len(text), dtype=np.int32), Layout.plain(len(text)))
                logits = model.logits(hidden).numpy().astype(np.float64)
            for i in range(1, len(text)):
                w = 1.0 if i >= len(prompt) else weight
                top = logits[i - 1].max()
                total += w * (top + np.log(np.exp(logits[i - 1] - top).sum()) - logits[i - 1, text[i]])
                weights += w
    loss, _ = recorded(tmp_path, GROUPS, batch_size=COUNT, prompt_loss_weight=weight)
    assert loss == pytest.approx(total / weights, rel=1e-6)


def test_validation_loss_is_a_mean_by_weight_not_by_stream():
    config = settings()
    model, _ = adapted(config)
    streams = [build_stream([group]) for group in GROUPS]
    assert len({stream.total_weight for stream in streams}) > 1
    whole = build_stream(GROUPS)
    assert mean_loss(model, streams) == pytest.approx(stream_loss(model, whole).item() / whole.total_weight, rel=1e-6)


def test_a_label_that_the_model_does_not_have():
    """End of text is only ever a label: no input row would show that it is out of range."""
    model, _ = adapted(settings())
    stream = build_stream([TokenGroup([1, 2], [Branch("x", [3], [4, 61])])])
    assert stream.tokens.max() < 61
    with pytest.raises(UserError, match="label 61 is out of range: the model has 0 to 60"):
        stream_loss(model, stream)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_training_learns_the_examples(tmp_path):
    run = Run(tmp_path, settings(max_steps=40, batch_size=COUNT), GROUPS, (), *adapted(settings(), values=False))
    assert run.losses[-1] < 0.3 * run.losses[0]
    assert run.progress.train_loss == run.losses[-1]
    assert (run.outcome.reason, run.outcome.total_steps, run.progress.step) == ("finished", 40, 40)


def test_frozen_weights_are_untouched_and_all_of_the_adapter_moves(tmp_path):
    model, adapter = adapted(settings(), values=False)
    block = model.transformer.h[1]
    frozen = [block.ln_1.bias, *(leaf.module.weight for leaf in leaf_modules(model))]
    before = [w.numpy().tobytes() for w in frozen]
    start = {name: p.numpy().copy() for name, p in adapter.parameters().items()}
    run = Run(tmp_path, settings(max_steps=3), GROUPS, (), model, adapter)
    assert [w.numpy().tobytes() for w in frozen] == before
    for name, array in run.arrays().items():
        assert (array != start[name]).any(), name


def test_rows_of_the_keys_stay_zero_with_qv_only(tmp_path):
    source = tiny.VARIANTS["gpt2"]
    model = build_model(tiny.config(source), tiny.tensors(source))
    adapter = inject(model, LoraConfig(r=2, target_modules=("c_attn",), qv_only=True))
    config = settings(max_steps=4, weight_decay=0.1)
    Run(tmp_path, config, GROUPS, (), model, adapter, AdamW(adapter.parameters(), weight_decay=0.1))
    for update in adapter.updates.values():
        b = update.lora_B.numpy()
        assert not b[24:48].any()
        assert b[:24].any() and b[48:].any()


def test_the_gradient_is_clipped_and_the_log_has_its_length_before(tmp_path):
    whole = recorded(tmp_path / "a", GROUPS)[1]
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in whole.values()))
    assert norm > 1
    clipped = recorded(tmp_path / "b", GROUPS, max_grad_norm=0.5)[1]
    for name, gradient in whole.items():
        np.testing.assert_allclose(clipped[name], gradient * (0.5 / norm), rtol=1e-4, atol=1e-9)
    assert f'"grad_norm": {norm:.3f}'[:-1] in (tmp_path / "b" / "metrics.jsonl").read_text()


def test_every_stream_of_every_step_has_its_own_dropout_masks(tmp_path):
    config = settings(max_steps=3, batch_size=5, max_tokens_per_stream=16, lora_dropout=0.3)
    model, adapter = adapted(config)
    keys = []
    adapter.set_dropout = lambda *key: keys.append(key)
    Run(tmp_path, config, GROUPS, (), model, adapter)
    used = [key for key in keys if key]
    assert len(set(used)) == len(used) > 3
    assert {(seed, step) for seed, step, _ in used} == {(3, 0), (3, 1), (3, 2)}


def test_rates_are_those_of_the_schedule(tmp_path):
    config = settings(max_steps=6, schedule="cosine", warmup_steps=2, min_learning_rate_ratio=0.1)
    run = Run(tmp_path, config, GROUPS, optimizer=Recorder())
    assert run.optimizer.rates == [learning_rate(step, total_steps=6, peak=0.01, warmup_steps=2, schedule="cosine",
                                                 min_ratio=0.1) for step in range(6)]


def test_steps_do_not_pile_up(tmp_path):
    alive = []
    Run(tmp_path, settings(max_steps=6, save_every=1, lora_dropout=0.1), GROUPS,
        save=lambda progress: alive.append(jt.liveness_info()["lived_vars"]))
    assert max(alive[2:]) <= alive[1] * 1.05


# --- validation, early stop, interruption ----------------------------------------------------------------------------


def test_validation_before_during_and_after(tmp_path):
    config = settings(max_steps=5, eval_every=2, dev="dev")
    run = Run(tmp_path, config, GROUPS, tiny.groups(2, seed=9), answer_dev=lambda: {"f1": 50.0})
    rows = [line for line in run.lines("metrics.jsonl") if "val_loss" in line]
    assert [row.split(",")[0] for row in rows] == ['{"step": 0', '{"step": 2', '{"step": 4', '{"step": 5']
    assert all('"f1": 50.0' in row for row in rows)
    validation = [float(line) for line in run.lines("val_loss.txt")]
    assert run.progress.validation_loss == validation[-1]
    assert run.progress.best_loss == min(validation)
    assert run.best[-1] == run.progress.best_step == [0, 2, 4, 5][int(np.argmin(validation))]


def test_validation_knows_no_dropout(tmp_path):
    dev = tiny.groups(2, seed=9)
    config = settings(max_steps=3, eval_every=1, lora_dropout=0.5, learning_rate=1e-30)
    run = Run(tmp_path, config, GROUPS, dev)
    model, _ = adapted(settings())
    expected = mean_loss(model, [build_stream(dev)])
    assert [float(line) for line in run.lines("val_loss.txt")] == pytest.approx([expected] * 4, rel=1e-6)
    assert all(update.dropout_seed is None for update in run.adapter.updates.values())


def test_early_stop(tmp_path):
    config = settings(max_steps=50, eval_every=2, patience=3, learning_rate=1e-30)
    run = Run(tmp_path, config, GROUPS, tiny.groups(2, seed=9))
    assert (run.outcome.reason, run.progress.step, run.best, run.saved) == ("early stop", 6, [0], [6])
    again = Run(tmp_path, config, GROUPS, tiny.groups(2, seed=9), progress=run.progress)  # resumed, it stays so
    assert (again.outcome.reason, again.progress.step) == ("early stop", 6)
    assert len(again.lines()) == 6


def test_checkpoints_are_saved_at_intervals_and_at_the_end(tmp_path):
    assert Run(tmp_path / "a", settings(max_steps=5, save_every=2), GROUPS).saved == [2, 4, 5]
    assert Run(tmp_path / "b", settings(max_steps=3, save_every=0), GROUPS).saved == [3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("steps, reason", [(9, "interrupted"), (2, "finished")])
def test_an_interruption_ends_the_step_and_saves(tmp_path, number, steps, reason):
    before = signal.getsignal(number)

    class Interrupting(AdamW):
        def step(self, gradients, rate, factor):
            super().step(gradients, rate)
            if self.steps == 2:
                signal.raise_signal(number)

    config = settings(max_steps=steps)
    model, adapter = adapted(config)
    run = Run(tmp_path, config, GROUPS, (), model, adapter, Interrupting(adapter.parameters()))
    assert (run.outcome.reason, run.progress.step, run.saved, len(run.losses)) == (reason, 2, [2], 2)
    assert run.outcome.signal == number and signal.getsignal(number) is before


def test_an_interruption_while_the_last_checkpoint_is_saved(tmp_path):
    run = Run(tmp_path, settings(max_steps=2), GROUPS, save=lambda progress: signal.raise_signal(signal.SIGINT))
    assert (run.outcome.reason, run.progress.step, run.outcome.signal) == ("finished", 2, signal.SIGINT)


def test_a_second_interruption_does_not_wait():
    with pytest.raises(KeyboardInterrupt), interruption_noticed() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)


# --- order and resuming ----------------------------------------------------------------------------------------------


def ids(batch):
    return [branch.id for group in batch for branch in group.branches]


def order(config, start=0, total=None, groups=GROUPS):
    steps = steps_from(start, total or total_steps(groups, config), groups, config)
    return [(step, ids(batch)) for step, batch in steps]


def test_an_epoch_has_every_example_once():
    for batch_size, accumulated in ((4, 1), (5, 1), (2, 2), (2, 4), (COUNT, 1), (100, 3)):
        config = settings(max_steps=None, epochs=3.0, batch_size=batch_size, gradient_accumulation=accumulated)
        steps = order(config)
        per_epoch = -(-COUNT // (batch_size * accumulated))
        assert [step for step, _ in steps] == list(range(3 * per_epoch))
        for epoch in range(3):
            seen = [i for _, batch in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for i in batch]
            assert sorted(seen) == sorted(ids(GROUPS))
            assert all(batch for _, batch in steps[epoch * per_epoch : (epoch + 1) * per_epoch])


def test_order_depends_on_seed_and_epoch_alone():
    config = settings(max_steps=9, batch_size=3)
    assert order(config) == order(config)
    assert order(config) != order(settings(max_steps=9, batch_size=3, seed=4))
    assert [batch for _, batch in order(config)[:4]] != [batch for _, batch in order(config)[4:8]]
    for start in range(10):
        assert order(config, start) == order(config)[start:]


@pytest.mark.parametrize("epochs, batch_size, expected", [(1.0, 5, 2), (2.0, 4, 6), (0.5, 3, 2), (0.01, 3, 1)])
def test_total_steps(epochs, batch_size, expected):
    config = settings(max_steps=None, epochs=epochs, batch_size=batch_size)
    assert COUNT == 10
    assert total_steps(GROUPS, config) == expected
    assert total_steps(GROUPS, settings(max_steps=77)) == 77


def test_due():
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]
    assert not due(5, 0) and not due(5, None)


def test_each_epoch_draws_its_answers():
    config = settings(max_steps=9, batch_size=5, references="sampled")
    steps = list(steps_from(0, 9, SEVERAL, config))
    assert [(step, ids(batch)) for step, batch in steps] == order(settings(max_steps=9, batch_size=5))
    learnt = [{b.id: b.completion for _, batch in steps[i : i + 2] for group in batch for b in group.branches}
              for i in range(0, 8, 2)]
    assert all(found.keys() == learnt[0].keys() for found in learnt)
    assert len({str(sorted(found.items())) for found in learnt}) > 2
    for start in range(9):
        assert list(steps_from(start, 9, SEVERAL, config)) == steps[start:]


@pytest.mark.parametrize("stop, references", [(1, "most-frequent"), (4, "most-frequent"), (6, "most-frequent"),
                                              (3, "all"), (5, "sampled")])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, stop, references):
    """Dropout on, several streams per step, epochs turning over, validation on the way."""
    config = settings(max_steps=8, batch_size=5, max_tokens_per_stream=16, lora_dropout=0.3, schedule="cosine",
                      warmup_steps=2, max_grad_norm=1.0, eval_every=3, save_every=1, references=references)
    dev, groups = tiny.groups(2, seed=9), GROUPS if references == "most-frequent" else SEVERAL

    def run(folder, config, model, adapter, optimizer, progress):
        def save(progress):
            arrays = {f"adapter.{name}": p.numpy() for name, p in adapter.parameters().items()}
            values = dataclasses.asdict(progress)
            if progress.best_loss == float("inf"):
                values["best_loss"] = None
            write_state(folder / "checkpoints", progress.step,
                        TrainingState({**arrays, **optimizer.state()}, {**values, "steps": optimizer.steps}), keep=99)

        return Run(folder, config, groups, dev, model, adapter, optimizer, progress, save)

    def fresh():
        model, adapter = adapted(config, values=False)
        return model, adapter, AdamW(adapter.parameters())

    through = run(tmp_path / "through", config, *fresh(), Progress())

    folder = tmp_path / "resumed"
    stopping = SimpleNamespace(at=None)
    model, adapter, optimizer = fresh()
    plain = optimizer.step

    def step(gradients, rate, factor):
        plain(gradients, rate, factor)
        if optimizer.steps == stop:
            signal.raise_signal(signal.SIGTERM)
            stopping.at = optimizer.steps

    optimizer.step = step
    first = run(folder, config, model, adapter, optimizer, Progress())
    assert (first.outcome.reason, stopping.at) == ("interrupted", stop)

    jt.set_global_seed(stop)  # a new process does not find the generators as the old one left them
    np.random.seed(stop)
    state = read_state(folder / "checkpoints" / f"step-{stop:08d}.safetensors")
    model, adapter, optimizer = fresh()
    adapter.load({name[len("adapter."):]: a for name, a in state.arrays.items() if name.startswith("adapter.")})
    values = dict(state.values)
    optimizer.load_state(state.arrays, values.pop("steps"))
    resumed = run(folder, config, model, adapter, optimizer, Progress(**values))

    assert resumed.progress == through.progress
    for name in ("train_loss.txt", "val_loss.txt"):
        assert resumed.lines(name) == through.lines(name)
    assert len(resumed.lines()) == 8
    for name, array in through.arrays().items():
        assert resumed.arrays()[name].tobytes() == array.tobytes(), name
    for name, array in through.optimizer.state().items():
        assert resumed.optimizer.state()[name].tobytes() == array.tobytes(), name
    last = "checkpoints/step-00000008.safetensors"
    assert (folder / last).read_bytes() == (tmp_path / "through" / last).read_bytes()


def test_batches_of_single_questions_where_paragraphs_need_not_stay_whole():
    groups = [TokenGroup([g], [Branch(f"{g}.{b}", [b], [9]) for b in range(4)]) for g in range(6)]
    config = settings(batch_size=4, whole_paragraphs=False)
    batches = [batch for _, batch in steps_from(0, 6, groups, config)]
    assert sorted(branch.id for batch in batches for group in batch for branch in group.branches) == sorted(
        branch.id for group in groups for branch in group.branches)
    assert any(len({group.branches[0].id[0] for group in batch}) > 2 for batch in batches)
    assert all(len({group.prefix[0] for group in batch}) == 1
               for _, batch in steps_from(0, 6, groups, settings(batch_size=4)))


# --- several ranks, here one after the other and without MPI; with MPI: tests/system/test_mpi.py ---------------------


class OneOf(Ranks):
    """One rank of several, the others absent: every sum is its own part."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def part_of_step(model, adapter, config, groups, rank, ranks, weight):
    """What one of several ranks adds to loss and gradient of a step with dropout."""
    step = Computation(model, adapter, config, OneOf(rank, ranks)).step(5, groups)
    share = step.weight / weight
    return share * step.loss, {name: share * g.numpy().astype(np.float64) for name, g in step.gradients.items()}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("weight", [0.0, 0.4])
@pytest.mark.parametrize("ranks, budget, share", [(2, 1024, True), (3, 60, True), (2, 1024, False), (12, 60, True)])
@pytest.mark.parametrize("groups", [tiny.groups(9), tiny.several(9)], ids=["one answer", "several"])
def test_the_parts_of_all_ranks_add_up(family, weight, ranks, budget, share, groups):
    config = settings(lora_dropout=0.4, max_tokens_per_stream=budget, prompt_loss_weight=weight, share_prefixes=share)
    model, adapter = adapted(config, family, **ORDINARY)
    total = sum(stream.total_weight for stream in streams_of(groups, config))
    expected_loss, expected = part_of_step(model, adapter, config, groups, 0, 1, total)
    found = [part_of_step(model, adapter, config, groups, rank, ranks, total) for rank in range(ranks)]
    assert sum(loss for loss, _ in found) == pytest.approx(expected_loss, rel=1e-6)
    summed = {name: sum(gradients[name] for _, gradients in found) for name in expected}
    assert relative(*(np.concatenate([g.ravel() for g in made.values()]) for made in (summed, expected))) < 2e-6
    if ranks == 12:  # more than there are paragraphs
        assert found[-1][0] == 0.0 and not any(g.any() for g in found[-1][1].values())
