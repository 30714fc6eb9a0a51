"""Combinations of adapters against PEFT's `add_weighted_adapter`, tensor by tensor."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer

import tiny
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.lora.combination import METHODS, PRUNING, Combination
from jittor_lora.lora.combine import _Draws, combine, random_mask
from jittor_lora.tasks.adapter import combine_folders
from parity import reference

pytestmark = pytest.mark.parity

TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "v_proj", "down_proj"]}
WEIGHTS = [0.7, -0.4, 1.3]
SVD = [method for method in METHODS if method.endswith("svd")]


class Theirs:
    """A model with adapters of PEFT's, and the same adapters read from the files that PEFT saves."""

    def __init__(self, folder: Path, family: str, settings: list[dict]):
        self.family, self.folder = family, folder
        source = tiny.VARIANTS[family]
        configs = [peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules":
                                      TARGETS[family], "fan_in_fan_out": family == "gpt2", **s}) for s in settings]
        self.names = [f"a{i}" for i in range(len(settings))]
        self.model = peft.get_peft_model(reference.network(source, tiny.tensors(source)), configs[0], "a0")
        for name, config in zip(self.names[1:], configs[1:]):
            self.model.add_adapter(name, config)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.2)
        self.model.save_pretrained(folder)
        self.adapters = [read_adapter_folder(folder / name) for name in self.names]

    def exact(self) -> Theirs:
        """The same in float64: in float32 singular vectors are not certain to 1e-5."""
        self.model.double()
        return self

    def combined(self, method: str, weights: list[float], **options) -> dict[str, np.ndarray]:
        self.model.base_model.add_weighted_adapter(self.names, weights, "new", method, **options)
        state = peft.get_peft_model_state_dict(self.model, adapter_name="new")
        return {name.replace("base_model.model.", "", 1).replace(".weight", ""): tensor.detach().float().numpy()
                for name, tensor in state.items()}

    def ours(self, method: str, weights: list[float], **options) -> dict[str, np.ndarray]:
        combined = combine([a.factors for a in self.adapters], weights, Combination(method, **options))
        embeddings = frozenset.union(*(a.embeddings for a in self.adapters))
        return {f"{module}.lora_{'embedding_' if module in embeddings else ''}{part}": array
                for module, pair in combined.items() for part, array in (("A", pair.a), ("B", pair.b))}


@pytest.fixture
def make(tmp_path):
    return lambda family, *settings: Theirs(tmp_path, family, list(settings))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    assert max(np.abs(array).max() for array in expected.values()) > 0.1


def with_signs_of(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`found` with the sign of each pair of singular vectors, which is arbitrary, as in `expected`."""
    turned = {}
    for name, array in found.items():
        if not name.endswith("A"):
            continue
        signs = np.sign(np.sum(array * expected[name], axis=1))
        turned[name] = array * signs[:, None]
        turned[name[:-1] + "B"] = found[name[:-1] + "B"] * signs
    return turned


def products(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name[:-1]: tensors[name[:-1] + "B"] @ array for name, array in tensors.items() if name.endswith("A")}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["linear", "cat"])
def test_sums(make, family, method):
    theirs = make(family, {}, {"lora_alpha": 3}, {"use_rslora": True})
    assert_same(theirs.ours(method, WEIGHTS), theirs.combined(method, WEIGHTS))


@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("majority", ["total", "frequency"])
def test_ties(make, density, majority):
    theirs = make("gpt2", {}, {"lora_alpha": 3}, {})
    expected = theirs.combined("ties", WEIGHTS, density=density or 1e-9, majority_sign_method=majority)
    found = theirs.ours("ties", WEIGHTS, density=density, majority=majority)
    if density:
        assert_same(found, expected)
    else:
        assert not any(array.any() for array in [*found.values(), *expected.values()])


def test_magnitude_prune(make):
    theirs = make("llama", {}, {"lora_alpha": 3}, {})
    assert_same(theirs.ours("magnitude_prune", WEIGHTS, density=0.4),
                theirs.combined("magnitude_prune", WEIGHTS, density=0.4))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("rank", [None, 2, 9])
@pytest.mark.parametrize("method", ["svd", "ties_svd", "magnitude_prune_svd"])
def test_approximations_of_a_rank(make, family, rank, method):
    """With different ranks and scalings; the rank of the result is the largest, or the one asked for."""
    theirs = make(family, {"r": 3}, {"r": 6, "lora_alpha": 3})
    pruning = {"density": 0.5} if method in PRUNING else {}
    expected = theirs.exact().combined(method, WEIGHTS[:2], svd_rank=rank, **pruning)
    found = theirs.ours(method, WEIGHTS[:2], svd_rank=rank, **pruning)
    assert_same(with_signs_of(found, expected), expected)


@pytest.mark.parametrize("method", ["svd", "ties_svd", "magnitude_prune_svd"])
def test_approximations_of_a_rank_in_float32(make, method):
    """What PEFT computes by default: the products, which do not depend on the choice of singular vectors."""
    theirs = make("gpt2", {"r": 3}, {"r": 6, "lora_alpha": 3})
    pruning = {"density": 0.5} if method in PRUNING else {}
    assert_same(*(products(tensors) for tensors in (theirs.ours(method, WEIGHTS[:2], **pruning),
                                                    theirs.combined(method, WEIGHTS[:2], **pruning))))


@pytest.mark.parametrize("clamp", [0.3, 0.8, 0.99])
def test_clamped_factors(make, clamp, monkeypatch):
    """The quantile depends on the arbitrary signs, so both get the same decomposition."""
    def svd(delta, full_matrices, driver):
        return [torch.from_numpy(part.copy()) for part in np.linalg.svd(delta.detach().numpy(), full_matrices=False)]

    monkeypatch.setattr(torch.linalg, "svd", svd)
    theirs = make("llama", {"r": 3}, {"r": 6})
    options = {"density": 0.9, "svd_clamp": clamp}
    assert_same(theirs.ours("ties_svd", WEIGHTS[:2], **options),
                theirs.exact().combined("ties_svd", WEIGHTS[:2], **options))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_random_pruning_with_the_same_masks(make, family, method, monkeypatch):
    """PEFT draws with torch's generator, we with Philox: both get the masks that we draw."""
    theirs = make(family, {}, {"lora_alpha": 3}, {})
    masks = []

    def drawn(draws, values, part):
        mask = random_mask(values.shape, draws.how.density, *draws.key, ("A", "B", "delta").index(part))
        masks.append((draws.key[1], mask))
        return original(draws, values, part)

    original = _Draws.__call__
    monkeypatch.setattr(_Draws, "__call__", drawn)
    found = theirs.ours(method, WEIGHTS, density=0.6, seed=7)
    order = [zlib.crc32(name.split("model.", 1)[1].encode()) for name, _ in theirs.model.base_model.named_modules()
             if name.startswith("model.")]
    masks.sort(key=lambda entry: order.index(entry[0]))
    transposed = family == "gpt2" and method in SVD  # PEFT's update of a Conv1D is (in, out)
    left = iter([mask.T if transposed else mask for _, mask in masks])

    def bernoulli(probabilities):
        assert np.allclose(probabilities.numpy(), 0.6)
        return torch.from_numpy(next(left).copy()).reshape(probabilities.shape)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    expected = theirs.exact().combined(method, WEIGHTS, density=0.6)
    assert next(left, None) is None
    assert_same(with_signs_of(found, expected) if method in SVD else found, expected)


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "ties", "ties_svd"])
def test_embeddings_and_modules_that_one_adapter_lacks(make, method):
    theirs = make("gpt2", {"target_modules": ["wte", "c_attn"]}, {"target_modules": ["wte", "c_fc"]})
    pruning = {"density": 0.7} if method in PRUNING else {}
    expected = theirs.exact().combined(method, WEIGHTS[:2], **pruning)
    found = theirs.ours(method, WEIGHTS[:2], **pruning)
    assert any("lora_embedding_A" in name for name in found)
    assert_same(with_signs_of(found, expected) if method in SVD else found, expected)


@pytest.mark.parametrize("method", ["linear", "svd", "cat"])
def test_one_adapter_alone(make, method):
    theirs = make("gpt2", {"lora_alpha": 3})
    assert_same(theirs.ours(method, [0.5]), theirs.combined(method, [0.5]))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "cat" and not m.endswith("svd")])
def test_different_ranks_are_refused_by_both(make, method):
    theirs = make("gpt2", {"r": 3}, {"r": 4})
    pruning = {"density": 0.5} if method in PRUNING else {}
    with pytest.raises(ValueError, match="same r value"):
        theirs.combined(method, WEIGHTS[:2], **pruning)
    with pytest.raises(UserError, match="needs equal ranks"):
        theirs.ours(method, WEIGHTS[:2], **pruning)


def test_patterns_of_rank_and_alpha(make):
    settings = {"rank_pattern": {"c_attn": 2, r"h\.1\.mlp\.c_fc": 4}, "alpha_pattern": {"mlp.c_proj": 5}}
    theirs = make("gpt2", settings, {"r": 6, "lora_alpha": 3})
    expected = theirs.exact().combined("svd", WEIGHTS[:2])
    assert_same(with_signs_of(theirs.ours("svd", WEIGHTS[:2]), expected), expected)


@pytest.mark.parametrize("method", ["cat", "svd", "ties"])
def test_peft_loads_the_combination(make, tmp_path, method):
    """And computes with it what it does with its own; of rsLoRA its own has the tensors, and a scaling too large."""
    theirs = make("gpt2", {"use_rslora": True, "lora_alpha": 4}, {"lora_alpha": 3})
    pruning = {"density": 0.7} if method in PRUNING else {}
    combine_folders([tmp_path / name for name in theirs.names], WEIGHTS[:2], Combination(method, **pruning),
                    tmp_path / "ours")
    source = tiny.VARIANTS["gpt2"]
    loaded = peft.PeftModel.from_pretrained(reference.network(source, tiny.tensors(source)), tmp_path / "ours").eval()
    theirs.combined(method, WEIGHTS[:2], **pruning)
    theirs.model.set_adapter("new")
    for module in theirs.model.modules():
        if isinstance(module, LoraLayer) and "new" in module.scaling:
            assert module.scaling["new"] == pytest.approx(np.sqrt(module.r["new"]))
            module.scaling["new"] = 1.0
    tokens = tiny.tokens(20)
    np.testing.assert_allclose(reference.logits(loaded, tokens), reference.logits(theirs.model, tokens), atol=1e-4)
