"""Records that differ in one thing: the comparison names it and its place."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.synthetic import (
    EPSILON,
    RATE,
    adam,
    adapter,
    gelu_erf,
    gradients,
    make_record,
    replaced,
    rounded,
)
from jittor_lora.alignment.compare import compare
from jittor_lora.alignment.distance import ROUNDING, origin, relative
from jittor_lora.alignment.result import CHECKS
from jittor_lora.alignment.tolerances import TOLERANCES
from jittor_lora.alignment.words import LANGUAGES, sentence

HERE, THERE = make_record(), make_record(there=True)
START, GRADIENTS = adapter(1), gradients()
A, B = "h.1.attn.c_attn.lora_A", "h.1.attn.c_attn.lora_B"


def first_failure(there, **how):
    found = compare(HERE, there, **how)
    assert not found.agrees
    for language in LANGUAGES:
        assert sentence(found, found.first_failure, language)
    return found.first_failure


def updated(**how):
    """The other side with another optimiser."""
    return replaced(THERE, "first_step", **{f"updated.{name}": adam(START[name], g, **how)
                                            for name, g in GRADIENTS.items()})


def with_steps(change):
    """The other side with other steps: `change` gives the new values of a step's fields."""
    return dataclasses.replace(THERE, steps=tuple(dataclasses.replace(step, **change(step)) for step in THERE.steps))


def test_sides_that_differ_by_rounding_agree():
    found = compare(HERE, THERE, references={"q1": ["answer 1"], "q2": ["something else"], "unasked": ["x"]})
    assert found.agrees and found.first_failure is None
    assert [check.key for check in found.checks] == list(CHECKS) == list(TOLERANCES)
    assert all(check.passed for check in found.checks if check.key != "answers")
    assert 0 < found.checks[3].found < 1e-6
    assert [(one.exact_match, one.count) for one in found.scores] == [(50.0, 2)] * 2


# What is planted in the forward pass → module and reason.
FORWARD = {
    "erf GELU": ({"gelu": gelu_erf}, "h.0.mlp.c_proj", "between_activation"),
    "a bias dropped": ({"dropped": "h.1.attn.c_attn.bias"}, "h.1.attn.c_attn", "inside_linear"),
    "a norm's weight dropped": ({"dropped": "h.2.ln_2.weight"}, "h.2.ln_2", "inside_norm"),
    "a norm's epsilon": ({"eps": 1e-4}, "h.0.ln_1", "inside_norm"),
    "scores unscaled": ({"scale": 1.02}, "h.0.attn.c_proj", "between_attention"),
    "positions from 1": ({"positions_from": 1}, "wpe", "positions"),
    "another text": ({"tokens_from": 2}, "wte", "tokens"),
    "another residual": ({"residual": 0.99}, "h.0.ln_2", "between_residual"),
    "another embedding": ({"dropped": "wpe.weight"}, "wpe", "inside_embedding"),
}


@pytest.mark.parametrize("error", FORWARD)
def test_errors_of_the_forward_pass_are_located(error):
    planted, where, reason = FORWARD[error]
    check = first_failure(make_record(there=True, **planted))
    assert (check.key, check.where, check.reason) == ("activations", where, reason)


def test_a_difference_is_located_where_it_arises_not_where_it_exceeds_the_tolerance():
    assert origin([0, 1e-7, 2e-7, 6e-6, 7e-6, 2e-5], 1e-5) == 3
    assert origin([0, 1e-7, 1e-6, 2e-6, 9e-6], 1e-5) is None
    assert origin([0.5], 1e-5) == 0
    assert origin([0, ROUNDING, math.inf, 3], 1e-5) == 2


def test_embeddings_without_records_are_before_the_first_module():
    known = {name: array for name, array in HERE.first_step.items() if ".wte" not in name and ".wpe" not in name}
    here = dataclasses.replace(HERE, first_step=known)
    check = compare(here, make_record(there=True, positions_from=1)).first_failure
    assert (check.where, check.reason) == ("h.0.ln_1", "embedding_sum")


def test_the_output_head_is_told_from_the_last_module():
    check = first_failure(replaced(THERE, "first_step", logits=THERE.first_step["logits"] * 1.01))
    assert (check.key, check.where, check.reason, check.values["first"]) == ("activations", "logits", "head", "ln_f")
    check = first_failure(replaced(THERE, "first_step", logits=THERE.first_step["logits"][1:]))
    assert (check.where, check.reason, check.found) == ("logits", "shapes", math.inf)
    assert first_failure(replaced(THERE, "first_step", logits=None)).reason == "only_here"


BASES = {
    "dropped": (((72,), 0.0, 0.0), "zeros_there"),
    "other": (((72,), 1.0, 2.0), "base_values"),
    "shape": (((71,), 1.0, 2.0), "shapes"),
    "missing": (None, "only_here"),
    "NaN": (((72,), math.nan, math.nan), "base_values"),
}


@pytest.mark.parametrize("kind", BASES)
def test_weights_of_the_base(kind):
    value, reason = BASES[kind]
    check = first_failure(replaced(THERE, "base", h__1__attn__c_attn__bias=value))
    assert (check.key, check.where, check.reason) == ("base", "h.1.attn.c_attn.bias", reason)


def test_a_transposed_weight_of_the_base():
    _, total, norm = THERE.base["h.1.attn.c_attn.weight"]
    check = first_failure(replaced(THERE, "base", h__1__attn__c_attn__weight=((72, 24), total, norm)))
    assert (check.where, check.reason) == ("h.1.attn.c_attn.weight", "base_transposed")


ADAPTERS = {
    "its transpose, in the same shape": (START[A].T.reshape(START[A].shape), "transposed"),
    "reshaped, then transposed": (START[A].reshape(START[A].shape[::-1]).T.copy(), "transposed"),
    "its transpose": (START[A].T, "transposed"),
    "reshaped": (START[A].reshape(2, -1), "shapes"),
    "drawn anew": (adapter(5)[A], "adapter_values"),
    "cut": (START[A][:2], "shapes"),
    "NaN": (np.full_like(START[A], np.nan), "not_finite"),
    "missing": (None, "only_here"),
    "in half precision": (START[A].astype(np.float16).astype(np.float32), "adapter_values"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_initial_adapter(kind):
    array, reason = ADAPTERS[kind]
    check = first_failure(replaced(THERE, "initial_adapter", **{A: array}))
    assert (check.key, check.where, check.reason) == ("initial_adapter", A, reason)


@pytest.mark.parametrize("turn", [np.asarray, np.transpose])
def test_a_and_b_exchanged(turn):
    check = first_failure(replaced(THERE, "initial_adapter", **{A: turn(START[B]), B: turn(START[A])}))
    assert (check.key, check.where, check.reason) == ("initial_adapter", A, "exchanged")


def test_another_scaling():
    check = first_failure(replaced(THERE, "initial_scaling", **{"h.1.attn.c_attn": 8.0}))
    assert (check.where, check.reason, check.values) == ("h.1.attn.c_attn", "scaling", {"here": "2", "there": "8"})


@pytest.mark.parametrize("labels, reason", [(lambda step: step.labels + 9, "more_labels"),
                                            (lambda step: step.labels - 1, "fewer_labels"),
                                            (lambda step: step.tokens - 4, "all_labels")])
def test_labels_counted(labels, reason):
    check = first_failure(with_steps(lambda step: {"labels": labels(step)}))
    assert (check.key, check.where, check.reason) == ("loss", "1", reason)
    assert check.values["here"] == "41"


def test_the_loss_though_logits_agree():
    check = first_failure(dataclasses.replace(THERE, loss_of_first_example=HERE.loss_of_first_example * 4))
    assert (check.key, check.reason) == ("loss", "loss_of_example")
    check = first_failure(with_steps(lambda step: {"loss": step.loss * 1.01}))
    assert (check.key, check.where, check.reason) == ("loss", "1", "loss_of_step")


def test_gradients():
    scaled = {f"gradient.{name}": g * 8 for name, g in GRADIENTS.items()}
    check = first_failure(replaced(THERE, "first_step", **scaled))
    assert (check.key, check.reason, check.values) == ("gradients", "gradient_factor", {"factor": "8"})
    noise = rounded({f"gradient.{name}": g for name, g in GRADIENTS.items() if name.startswith(("h.0", "h.1"))}, 0.1)
    check = first_failure(replaced(THERE, "first_step", **noise))
    assert (check.where, check.reason) == ("h.1.mlp.c_proj.lora_B", "gradient")  # the last layer's agree
    check = first_failure(replaced(THERE, "first_step", **{f"gradient.{B}": None}))
    assert (check.where, check.reason) == (B, "only_here")


OPTIMIZERS = {
    "rate": ({"rate": 2 * RATE}, "rate", {"factor": "2"}),
    "decay": ({"decay": 0.01}, "weight_decay", {"here": "0", "there": "0.01"}),
    "decay and rate": ({"decay": 0.01, "rate": 2 * RATE}, "weight_decay", {"here": "0", "there": "0.01"}),
    "epsilon": ({"epsilon": 1e-6}, "epsilon", {"here": "1e-08", "there": "1e-06"}),
    "no correction": ({"corrected": False}, "bias_correction", {"factor": "3.162"}),
    "clipped": ({"epsilon": EPSILON * HERE.steps[0].grad_norm}, "clipping", {"here": "1e-08", "there": "2e-08"}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_optimiser_is_told_from_its_first_update(kind):
    how, reason, values = OPTIMIZERS[kind]
    check = first_failure(updated(**how))
    assert (check.key, check.reason, check.values) == ("first_update", reason, values)


def test_sgd_and_what_no_setting_explains():
    plain = {f"updated.{name}": START[name] - np.float32(0.1) * g for name, g in GRADIENTS.items()}
    assert first_failure(replaced(THERE, "first_step", **plain)).reason == "sgd_there"
    other = {f"updated.{name}": START[name] + rounded({"": g}, 3)[""] for name, g in GRADIENTS.items()}
    assert first_failure(replaced(THERE, "first_step", **other)).reason == "update"
    still = {f"updated.{name}": START[name] for name in GRADIENTS}
    assert first_failure(replaced(THERE, "first_step", **still)).reason == "update"


def test_signs_of_updates_without_gradient_are_left_to_rounding():
    g = GRADIENTS[B]
    tiny = np.abs(g) < 1e-4 * np.sqrt(np.mean(g**2))
    assert 0 < tiny.sum() < tiny.size / 2
    turned = adam(START[B], np.where(tiny, -g, g))
    assert compare(HERE, replaced(THERE, "first_step", **{f"updated.{B}": turned})).agrees
    turned = adam(START[B], np.where(tiny, g, -g))
    assert first_failure(replaced(THERE, "first_step", **{f"updated.{B}": turned})).where == B


def test_learning_rates():
    rates = [step.learning_rate for step in THERE.steps]
    check = first_failure(with_steps(lambda step: {"learning_rate": RATE}))
    assert (check.key, check.where, check.reason) == ("learning_rate", "1", "schedule")
    check = first_failure(with_steps(lambda step: {"learning_rate": [*rates, rates[-1]][step.step]}))
    assert check.reason == "rate_early"
    check = first_failure(with_steps(lambda step: {"learning_rate": [0.0, *rates][step.step - 1]}))
    assert check.reason == "rate_late"
    check = first_failure(with_steps(lambda step: {"learning_rate": 3 * step.learning_rate}))
    assert (check.reason, check.values["factor"]) == ("rate_factor", "3")
    check = first_failure(with_steps(lambda step: {"learning_rate": step.learning_rate * (1 + (step.step == 9))}))
    assert (check.where, check.reason) == ("9", "schedule")


def test_losses():
    check = first_failure(with_steps(lambda step: {"loss": step.loss + 0.1 * (step.step >= 20)}))
    assert (check.key, check.where, check.reason) == ("losses", "20", "jump")
    check = first_failure(with_steps(lambda step: {"loss": step.loss + 0.05 * (step.step >= 3)}))
    assert (check.where, check.reason) == ("3", "second_update")
    check = first_failure(with_steps(lambda step: {"loss": step.loss + 1e-6 * (1.2 ** step.step - 1.2)}))
    assert check.reason == "drift" and float(check.values["late"]) > 100 * float(check.values["early"])
    check = first_failure(with_steps(lambda step: {"loss": math.nan if step.step >= 9 else step.loss}))
    assert (check.where, check.reason, check.found) == ("9", "not_finite_there", math.inf)


def test_gradient_norms_after_clipping():
    check = first_failure(with_steps(lambda step: {"grad_norm": min(step.grad_norm, 1.0)}))
    assert (check.key, check.reason, check.values) == ("gradient_norms", "clipped_there", {"cap": "1"})


def test_the_final_adapter_is_compared_as_its_update():
    negated = {name: -THERE.adapter[name] for name in (A, B)}
    assert compare(HERE, replaced(THERE, "adapter", **negated)).agrees  # (-B)(-A) = B A
    other = {name: array for name, array in adapter(7, b=0.05).items() if name == B}
    check = first_failure(replaced(THERE, "adapter", **other))
    assert (check.key, check.where, check.reason) == ("final_adapter", "h.1.attn.c_attn", "final")
    assert first_failure(replaced(THERE, "scaling", **{"h.0.mlp.c_fc": 3.0})).where == "h.0.mlp.c_fc"
    assert first_failure(replaced(THERE, "adapter", **{A: None})).found == math.inf


def test_held_out_logits_but_for_what_softmax_ignores():
    shifted = tuple(logits + np.float32(7) for logits in THERE.held_out)
    assert compare(HERE, dataclasses.replace(THERE, held_out=shifted)).agrees
    other = (*THERE.held_out[:2], THERE.held_out[2][:, ::-1])
    check = first_failure(dataclasses.replace(THERE, held_out=other))
    assert (check.key, check.where) == ("held_out", "3")


def test_other_answers_only_inform():
    found = compare(HERE, replaced(THERE, "answers", q3="another"), references={"q3": ["answer 3"]})
    assert found.agrees and found.answers == {"q3": ("answer 3", "another")} and found.answered == 8
    assert [one.exact_match for one in found.scores] == [100.0, 0.0]
    strict = compare(HERE, replaced(THERE, "answers", q3="another"), tolerances={"answers": 0})
    assert strict.first_failure.key == "answers"


def test_other_data():
    assert first_failure(dataclasses.replace(THERE, steps=THERE.steps[:-1])).reason == "steps_count"
    assert first_failure(dataclasses.replace(THERE, held_out=THERE.held_out[1:])).reason == "texts_count"
    check = first_failure(replaced(THERE, "answers", q3=None))
    assert (check.key, check.where, check.reason) == ("data", "q3", "ids")


def test_dropout_leaves_what_comes_before_the_masks():
    found = compare(HERE, with_steps(lambda step: {"loss": step.loss * 1.3}), dropout=True)
    assert found.agrees
    assert [check.key for check in found.checks if check.passed is None] == [
        "losses", "gradient_norms", "final_adapter", "held_out", "answers"]
    assert {check.reason for check in found.checks if check.passed is None} == {"dropout"}
    assert compare(HERE, make_record(there=True, gelu=gelu_erf), dropout=True).first_failure.key == "activations"


def test_chosen_tolerances_decide_and_locate():
    there = make_record(there=True, gelu=gelu_erf)
    assert compare(HERE, there, tolerances={"activations": 1e-2, "loss": 1e-2}).agrees
    strict = compare(HERE, THERE, tolerances={"losses": 1e-7}).first_failure
    assert (strict.key, strict.tolerance, strict.reason != "") == ("losses", 1e-7, True)


def test_a_record_agrees_with_itself_exactly():
    assert {check.found for check in compare(HERE, HERE).checks} == {0.0}


def test_both_directions_find_the_same():
    for there in (THERE, make_record(there=True, gelu=gelu_erf), updated(rate=2 * RATE),
                  with_steps(lambda step: {"loss": step.loss + 0.1})):
        one, other = compare(HERE, there), compare(there, HERE)
        assert [check.found for check in one.checks] == pytest.approx([check.found for check in other.checks])
        assert one.agrees == other.agrees


ARRAYS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8).map(lambda v: np.array(v, np.float32))


@given(ARRAYS, st.floats(-1e3, 1e3))
def test_relative_is_a_symmetric_distance_from_0_to_2(array, factor):
    other = (array * np.float32(factor)).astype(np.float32)
    assert relative(array, array) == 0
    assert relative(array, other) == relative(other, array)
    assert 0 <= relative(array, other) <= 2 + 1e-6
    assert relative(array, array[:-1]) == math.inf


FIELDS = {"first_step": "activations", "initial_adapter": "initial_adapter", "adapter": "final_adapter"}


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_any_number_that_is_not_finite_fails(data, value, both):
    """On one side, or on both: two NaN are no agreement."""
    field = data.draw(st.sampled_from(sorted(FIELDS)))
    name = data.draw(st.sampled_from(sorted(getattr(HERE, field))))
    array = getattr(THERE, field)[name].copy()
    array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = value
    there = replaced(THERE, field, **{name: array})
    here = replaced(HERE, field, **{name: array}) if both else HERE
    found = compare(here, there)
    assert not found.agrees and found.first_failure.found == math.inf
    assert sentence(found, found.first_failure, "en")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, len(THERE.steps)), st.sampled_from(["loss", "grad_norm", "learning_rate"]),
       st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_any_step_that_is_not_finite_fails(step, column, value, both):
    there = with_steps(lambda one: {column: value} if one.step == step else {})
    here = dataclasses.replace(HERE, steps=there.steps) if both else HERE
    found = compare(here, there)
    assert not found.agrees and found.first_failure.found == math.inf


def test_held_out_logits_that_are_not_finite_fail():
    spoilt = (THERE.held_out[0], np.full_like(THERE.held_out[1], np.nan), THERE.held_out[2])
    for here in (HERE, dataclasses.replace(HERE, held_out=spoilt)):
        check = compare(here, dataclasses.replace(THERE, held_out=spoilt)).first_failure
        assert (check.key, check.where, check.found) == ("held_out", "2", math.inf)
