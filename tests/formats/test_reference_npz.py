"""The .npz of GPT2_LoRA_Jittor: what it computes, and round trips."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.formats.peft import load_adapter
from jittor_lora.formats.reference_npz import read_reference_npz, write_reference_npz
from jittor_lora.lora.combine import Factors
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt
from jittor_lora.tasks.adapter import folder_to_npz, npz_to_folder

RANK, ALPHA, WIDTH, HEADS, BLOCKS = 3, 12.0, 24, 3, 2


def weights(blocks: int = BLOCKS) -> dict[str, np.ndarray]:
    """What that project's `save_lora_weights` saves for all its target modules."""
    shapes = {}
    for i in range(blocks):
        for third in "qkv":
            shapes[f"transformer_h.{i}.attn.qkv_proj.lora_{{}}_{third}.weight"] = (WIDTH, WIDTH)
        shapes[f"transformer_h.{i}.attn.c_proj.lora_{{}}.weight"] = (WIDTH, WIDTH)
        shapes[f"transformer_h.{i}.mlp.c_fc.lora_{{}}.weight"] = (4 * WIDTH, WIDTH)
        shapes[f"transformer_h.{i}.mlp.c_proj.lora_{{}}.weight"] = (WIDTH, 4 * WIDTH)
    arrays = {}
    for name, (outputs, inputs) in shapes.items():
        arrays[name.format("A")], arrays[name.format("B")] = (RANK, inputs), (outputs, RANK)
    return tiny.adapter_arrays(arrays)


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "gpt2_lora_final.npz", **weights())
    return tmp_path / "gpt2_lora_final.npz"


def same_numbers(path, arrays) -> bool:
    found = np.load(path, allow_pickle=False)
    return set(found.files) == set(arrays) and all(found[name].tobytes() == a.tobytes() for name, a in arrays.items())


def test_three_updates_become_one_block_update(file):
    factors = read_reference_npz(file, ALPHA)
    assert len(factors) == 4 * BLOCKS
    arrays = weights()
    pair = factors["transformer.h.1.attn.c_attn"]
    assert pair.a.shape == (3 * RANK, WIDTH) and pair.b.shape == (3 * WIDTH, 3 * RANK) and pair.scaling == ALPHA / RANK
    name = "transformer_h.1.attn.qkv_proj.lora_{}_{}.weight"
    expected = np.concatenate([arrays[name.format("B", t)] @ arrays[name.format("A", t)] for t in "qkv"])
    np.testing.assert_allclose(pair.b @ pair.a, expected, atol=1e-6)


def their_logits(tensors: dict[str, np.ndarray], arrays: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """That project's network in numpy: no bias in q, k and v, and GELU with the error function."""
    tensors = {name.replace("transformer.", ""): a.astype(float) for name, a in tensors.items()}

    def update(x, name, third=""):
        a, b = (arrays[f"transformer_h.{name}.lora_{part}{third}.weight"] for part in "AB")
        return x @ a.T @ b.T * (ALPHA / RANK)

    def norm(x, name):
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def linear(x, block, name):
        weight, bias = (tensors[f"h.{block}.{name}.{part}"] for part in ("weight", "bias"))
        return x @ weight + bias + update(x, f"{block}.{name}")

    x, size = tensors["wte.weight"][tokens] + tensors["wpe.weight"][: len(tokens)], WIDTH // HEADS
    for i in range(BLOCKS):
        h = norm(x, f"h.{i}.ln_1")
        whole = np.split(tensors[f"h.{i}.attn.c_attn.weight"], 3, axis=1)
        q, k, v = (h @ w + update(h, f"{i}.attn.qkv_proj", f"_{t}") for w, t in zip(whole, "qkv"))
        heads = []
        for head in range(HEADS):
            s = slice(head * size, (head + 1) * size)
            scores = q[:, s] @ k[:, s].T / math.sqrt(size) + np.triu(np.full((len(x), len(x)), -np.inf), 1)
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(shares / shares.sum(axis=1, keepdims=True) @ v[:, s])
        x = x + linear(np.concatenate(heads, axis=1), i, "attn.c_proj")
        h = linear(norm(x, f"h.{i}.ln_2"), i, "mlp.c_fc")
        h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = x + linear(h, i, "mlp.c_proj")
    return norm(x, "ln_f") @ tensors["wte.weight"].T


def test_on_that_projects_base_the_logits_are_the_same(file, tmp_path):
    """Its base is GPT-2 without c_attn's bias and with another GELU; a base with both gives the same numbers."""
    source = {**tiny.GPT2, "activation_function": "gelu"}
    tensors = tiny.tensors(source)
    for i in range(BLOCKS):
        tensors[f"transformer.h.{i}.attn.c_attn.bias"] *= 0
    model, tokens = build_model(tiny.config(source), tensors), tiny.tokens(20)

    def logits():
        with jt.no_grad():
            hidden = model.hidden(tokens, np.arange(len(tokens), dtype=np.int32), Layout.plain(len(tokens)))
            return model.logits(hidden).numpy()

    base = logits()
    npz_to_folder(file, tmp_path / "adapter", "some/base", ALPHA)
    load_adapter(tmp_path / "adapter", model)
    expected = their_logits(tensors, weights(), tokens)
    np.testing.assert_allclose(logits(), expected, atol=2e-4)
    assert np.abs(expected - base).max() > 1


def test_a_round_trip_keeps_every_bit(file, tmp_path):
    adapter = npz_to_folder(file, tmp_path / "adapter", "gpt2", ALPHA)
    assert adapter.settings["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    assert (adapter.settings["r"], adapter.settings["lora_alpha"]) == (RANK, ALPHA)
    assert adapter.settings["rank_pattern"] == {"c_attn": 3 * RANK}
    assert folder_to_npz(tmp_path / "adapter", tmp_path / "again.npz") == (RANK, ALPHA)
    assert same_numbers(tmp_path / "again.npz", weights())


def test_any_gpt2_adapter_can_be_converted(tmp_path):
    """q, k and v share the A of c_attn; different ranks and scalings are evened out."""
    draw = np.random.default_rng(0)
    given = {"transformer.h.0.attn.c_attn": Factors(draw.standard_normal((4, 8), np.float32),
                                                    draw.standard_normal((24, 4), np.float32), 2.0),
             "transformer.h.0.mlp.c_proj": Factors(draw.standard_normal((2, 32), np.float32),
                                                   draw.standard_normal((8, 2), np.float32), 0.3)}
    rank, alpha = write_reference_npz(tmp_path / "a.npz", given)
    assert (rank, alpha) == (4, 8.0)
    again = read_reference_npz(tmp_path / "a.npz", alpha)
    for name, pair in given.items():
        np.testing.assert_allclose(again[name].delta(), pair.delta(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("left_out, targets", [
    ("qkv_proj", ["c_fc", "c_proj"]),
    ("mlp.c_proj", ["attn.c_proj", "c_attn", "c_fc"]),
    ("_h.0.mlp.c_fc", sorted(f"transformer.h.{i}.{kind}" for i in range(2) for kind in
                             ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj") if (i, kind) != (0, "mlp.c_fc"))),
])
def test_targets_are_those_of_the_file(tmp_path, left_out, targets):
    np.savez(tmp_path / "some.npz", **{name: a for name, a in weights().items() if left_out not in name})
    adapter = npz_to_folder(tmp_path / "some.npz", tmp_path / "adapter", "gpt2", ALPHA)
    assert adapter.settings["target_modules"] == targets
    load_adapter(tmp_path / "adapter", build_model(tiny.config(tiny.GPT2), tiny.tensors(tiny.GPT2)))


@pytest.mark.parametrize("change, expected", [
    (lambda a: a.pop("transformer_h.0.attn.qkv_proj.lora_A_k.weight"), "block 0, attn.c_attn.k: expected lora_A and"),
    (lambda a: [a.pop(f"transformer_h.0.attn.qkv_proj.lora_{p}_k.weight") for p in "AB"],
     "block 0: expected the updates of q, k and v"),
    (lambda a: a.update({"h.0.lora": np.ones((2, 2), "f4")}), "'h.0.lora': expected a name such as"),
    (lambda a: a.update({"transformer_h.0.attn.c_proj.lora_A.weight": np.ones((2, WIDTH), "f4")}),
     "block 0, attn.c_proj: expected A (r, in) and B (out, r)"),
    (lambda a: a.update({"transformer_h.0.attn.c_proj.lora_A.weight": np.ones((2, WIDTH), "f4"),
                         "transformer_h.0.attn.c_proj.lora_B.weight": np.ones((WIDTH, 2), "f4")}),
     "expected one rank, found 2, 3"),
])
def test_incomplete_files(tmp_path, change, expected):
    arrays = weights()
    change(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError) as caught:
        read_reference_npz(tmp_path / "bad.npz")
    assert expected in str(caught.value)


def test_modules_that_the_project_does_not_have(tmp_path):
    pair = Factors(np.ones((2, 4), np.float32), np.ones((4, 2), np.float32), 1.0)
    with pytest.raises(UserError, match="model.layers.0.self_attn.q_proj"):
        write_reference_npz(tmp_path / "a.npz", {"model.layers.0.self_attn.q_proj": pair})
    assert not list(tmp_path.iterdir())


def test_zeros_of_qv_only_stay_zeros(tmp_path):
    arrays = weights()
    for i in range(BLOCKS):
        arrays[f"transformer_h.{i}.attn.qkv_proj.lora_B_k.weight"] *= 0
    np.savez(tmp_path / "qv.npz", **arrays)
    npz_to_folder(tmp_path / "qv.npz", tmp_path / "adapter", "gpt2", ALPHA)
    pair = read_adapter_folder(tmp_path / "adapter").factors["transformer.h.0.attn.c_attn"]
    assert not pair.delta()[WIDTH : 2 * WIDTH].any() and pair.delta()[:WIDTH].any()


def test_an_encrypted_member(tmp_path):
    np.savez(tmp_path / "bad.npz", **weights())
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flags of the first entry
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match="not encrypted"):
        read_reference_npz(tmp_path / "bad.npz")
