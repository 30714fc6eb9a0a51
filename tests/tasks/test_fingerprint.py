"""The fingerprint of the training data: what it distinguishes, and its form in checkpoints of earlier versions."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

import small_run
from jittor_lora.data.examples import training_groups
from jittor_lora.data.groups import Branch, TokenGroup
from jittor_lora.data.squad import read_squad
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.formats.training_state import read_state, write_state
from jittor_lora.session import load
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.fingerprints import identity_of_data, is_identity_of_data
from jittor_lora.tasks.train import train

TOKENS = st.lists(st.integers(0, 2), max_size=2)
TURNS = st.sampled_from([(), ((1, 2),), ((1, 2), (2, 3)), ((1, 3),)])


def examples(unscored):
    branch = st.builds(Branch, st.text("a1", max_size=2), st.lists(st.integers(0, 2), min_size=1, max_size=2), TOKENS,
                       unscored)
    return st.lists(st.builds(TokenGroup, TOKENS, st.lists(branch, min_size=1, max_size=2)), max_size=2)


def of_json(groups):
    """The fingerprint before there were conversations, and several answers to a question."""
    contents = [asdict(group) for group in groups]
    for branch in (branch for content in contents for branch in content["branches"]):
        assert (branch.pop("unscored"), branch.pop("weight"), branch.pop("others")) == ((), 1.0, ())
    return hashlib.sha256(b"".join(json.dumps(content).encode() for content in contents)).hexdigest()


@given(examples(TURNS), examples(TURNS))
def test_only_the_same_examples_have_the_same_fingerprint(one, other):
    assert (identity_of_data(one) == identity_of_data(other)) == (one == other)


@given(examples(st.just(())), examples(TURNS))
def test_fingerprints_of_either_version_are_recognised(one, other):
    for identity in (identity_of_data(one), of_json(one)):
        assert is_identity_of_data(identity, one)
        assert is_identity_of_data(identity, other) == (one == other)


def test_it_is_the_same_on_any_machine():
    """Pinned: checkpoints hold it."""
    groups = [TokenGroup([1, 50_256], [Branch("né", [3], [4, 5]), Branch("b", [6], [])])]
    assert identity_of_data(groups) == (
        "arrays-540f9180e4e9251532b586d300478ab895f9edac8486ee12a4914654d9475264")


@pytest.fixture
def run(tmp_path):
    """A run of four steps, and its settings."""
    small_run.make_files(tmp_path, 6, 2)
    config = RunConfig(base=str(tmp_path / "base"), data=str(tmp_path / "train.json"), dev=str(tmp_path / "dev.json"),
                       output=str(tmp_path / "run"), max_steps=4, save_every=2, batch_size=3, lora_r=2, seed=3,
                       learning_rate=0.01, precision="fp32")
    train(config)
    return config, tmp_path / "run"


def as_before(folder):
    """Put the fingerprints of earlier versions into the checkpoint of step 2, and remove everything later."""
    tokenizer = load(str(folder.parent / "base")).tokenizer
    kept = {name: of_json(training_groups(read_squad(folder.parent / file), tokenizer, Template(), 256)[0])
            for name, file in (("data", "train.json"), ("dev", "dev.json"))}
    path = folder / "checkpoints/step-00000002.safetensors"
    state = read_state(path)
    (folder / "checkpoints/step-00000004.safetensors").unlink()
    write_state(folder / "checkpoints", 2, state._replace(values={**state.values, **kept}), 3)
    shutil.rmtree(folder / "adapter")


def test_a_checkpoint_of_an_earlier_version_resumes_bit_for_bit(run):
    config, folder = run
    whole = (folder / "adapter/adapter_model.safetensors").read_bytes()
    losses = (folder / "train_loss.txt").read_text()
    as_before(folder)
    train(config, resume=True)
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() == whole
    assert (folder / "train_loss.txt").read_text() == losses


@pytest.mark.parametrize("before", [False, True])
def test_other_examples_are_refused(run, before):
    config, folder = run
    if before:
        as_before(folder)
    small_run.make_squad(folder.parent / "train.json", 6, first=1)
    small_run.make_squad(folder.parent / "dev.json", 3)
    with pytest.raises(UserError, match="(?s)the training examples are not those.*the validation examples are not"):
        train(config, resume=True)
