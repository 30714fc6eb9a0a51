"""loralib's files to PEFT's layout and back. Against loralib's own formula: tests/parity/test_loralib.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torch_files
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_files import CONFIG_FILE
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.formats.loralib_file import read_loralib
from jittor_lora.formats.loralib_writer import write_loralib
from jittor_lora.formats.torch_file import TorchFile
from jittor_lora.lora.combine import Factors
from jittor_lora.tasks.adapter import folder_to_loralib, loralib_to_folder

WIDTH, RANK, ALPHA = 6, 2, 32.0


def draw(*shape):
    return np.random.RandomState(sum(shape)).standard_normal(shape).astype(np.float32)


def fused(parts: int = 2, rank: int = RANK):
    return {"lora_A": draw(parts * rank, WIDTH), "lora_B": draw(parts * WIDTH, rank)}


def arrays(of: dict, prefix: str = "transformer.", blocks: int = 2):
    return {f"{prefix}h.{i}.{module}.{part}": array for i in range(blocks) for module, pair in of.items()
            for part, array in pair.items()}


def written(folder, tensors, save=torch_files.saved):
    path = folder / "model.pt"
    path.write_bytes(save(tensors))
    return path


@given(st.sampled_from(["qv", "qkv", "q", "k", "v", "qk", "kv"]), st.integers(1, 3), st.sampled_from([1.0, 16.0, 7.5]))
def test_the_update_is_that_of_the_parts(tmp_path_factory, parts, rank, alpha):
    pair = fused(len(parts), rank)
    path = written(tmp_path_factory.mktemp("l"), arrays({"attn.c_attn": pair}))
    found = read_loralib(path, alpha, parts).factors["transformer.h.1.attn.c_attn"]
    expected = np.zeros((3 * WIDTH, WIDTH), np.float32)
    for i, part in enumerate(parts):
        at = "qkv".index(part) * WIDTH
        expected[at : at + WIDTH] = alpha / rank * (
            pair["lora_B"][i * WIDTH : (i + 1) * WIDTH] @ pair["lora_A"][i * rank : (i + 1) * rank])
    np.testing.assert_allclose(found.delta(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "transformer.", "module.transformer.", "_orig_mod.module.transformer."])
@pytest.mark.parametrize("save", [torch_files.saved, torch_files.saved_before_1_6])
def test_the_folder(tmp_path, prefix, save):
    plain = {"lora_A": draw(RANK, WIDTH), "lora_B": draw(4 * WIDTH, RANK)}
    path = written(tmp_path, arrays({"attn.c_attn": fused(), "mlp.c_fc": plain}, prefix), save)
    adapter, notes = loralib_to_folder(path, tmp_path / "out", "gpt2", ALPHA, None)
    assert any("queries and values" in note for note in notes)
    assert any("module" in note for note in notes) == prefix.startswith(("module", "_orig"))
    settings = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert (settings["r"], settings["lora_alpha"]) == (RANK, ALPHA)
    assert (settings["rank_pattern"], settings["alpha_pattern"]) == ({"c_attn": 2 * RANK}, {"c_attn": 2 * ALPHA})
    assert sorted(settings["target_modules"]) == ["c_attn", "c_fc"] and settings["fan_in_fan_out"]
    found = adapter.factors["transformer.h.0.mlp.c_fc"]
    np.testing.assert_array_equal(found.a, plain["lora_A"])
    assert all(pair.scaling == ALPHA / RANK for pair in adapter.factors.values())


def test_different_ranks_and_an_embedding(tmp_path):
    tensors = {**arrays({"mlp.c_fc": {"lora_A": draw(2, WIDTH), "lora_B": draw(9, 2)}}),
               "transformer.h.1.mlp.c_proj.lora_A": draw(4, 9), "transformer.h.1.mlp.c_proj.lora_B": draw(WIDTH, 4),
               "transformer.h.0.mlp.c_proj.lora_A": draw(2, 9), "transformer.h.0.mlp.c_proj.lora_B": draw(WIDTH, 2),
               "transformer.wte.lora_A": draw(3, 20), "transformer.wte.lora_B": draw(WIDTH, 3)}
    adapter, _ = loralib_to_folder(written(tmp_path, tensors), tmp_path / "out", "gpt2", 8.0, None)
    assert adapter.embeddings == {"transformer.wte"}
    for module, pair in adapter.factors.items():
        assert pair.scaling == 8.0 / len(pair.a)
        np.testing.assert_array_equal(pair.a, tensors[f"{module}.lora_A"])


@pytest.mark.parametrize("tensors, expected", [
    ({"h.0.attn.c_attn.lora_A": draw(2, 6)}, "lora_A alone"),
    (arrays({"attn.c_attn": fused(1)}), "holds 1 of the updates of q, k and v; name them with --enable-lora"),
    (arrays({"attn.c_attn": {"lora_A": draw(8, 6), "lora_B": draw(24, 2)}}), "expected A (r, in) and B (out, r)"),
    (arrays({"attn.c_proj": fused(2)}), "expected A (r, in) and B (out, r)"),
    ({"h.0.attn.c_attn.weight": draw(6, 18)}, "lora_state_dict(model) alone"),
    ({"h.0.attn.c_attn.bias": draw(18)}, "without biases"),
    ({"base_model.model.h.0.attn.c_attn.lora_A.weight": draw(2, 6)}, "a tensor of PEFT"),
    ({"h.0.attn.c_attn.lora_A": np.full((2, 6), np.nan, np.float32), "h.0.attn.c_attn.lora_B": draw(18, 2)},
     "not finite (12 NaN"),
    ({"h.0.mlp.c_fc.lora_A": draw(0, 6), "h.0.mlp.c_fc.lora_B": draw(18, 0)}, "expected a matrix"),
    ({"x\x1b[2J.lora_A": draw(2, 6)}, "expected a name such as"),
])
def test_other_files(tmp_path, tensors, expected):
    path = written(tmp_path, tensors)
    with pytest.raises(UserError) as caught:
        read_loralib(path, 1.0)
    assert expected in str(caught.value) and str(path) in str(caught.value)


def test_the_named_parts_must_be_as_many(tmp_path):
    with pytest.raises(UserError, match="holds 2 of the updates.*found q"):
        read_loralib(written(tmp_path, arrays({"attn.c_attn": fused(2)})), 1.0, "q")


def test_the_verb(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, arrays({"attn.c_attn": fused()}, "module.transformer."))
    assert main(["adapter", "convert", "model.pt", "out", "--alpha", "32"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("out: rank 2, ") and "queries and values" in err and "module" in err
    assert main(["adapter", "convert", "model.pt", "keys", "--alpha", "32", "--enable-lora", "q,k"]) == 0
    assert "queries and values" not in capsys.readouterr().err
    assert main(["adapter", "convert", "model.pt", "no"]) == 2
    assert "does not contain alpha" in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("parts", ["qv", "qkv", "k", "kv"])
def test_back_to_loralib_bit_for_bit(tmp_path, parts):
    tensors = arrays({"attn.c_attn": fused(len(parts)), "mlp.c_fc": {"lora_A": draw(RANK, WIDTH),
                                                                     "lora_B": draw(4 * WIDTH, RANK)}}, blocks=12)
    tensors["transformer.wte.lora_A"], tensors["transformer.wte.lora_B"] = draw(RANK, 20), draw(WIDTH, RANK)
    loralib_to_folder(written(tmp_path, tensors), tmp_path / "out", "gpt2", 7.5, parts)
    found = folder_to_loralib(tmp_path / "out", tmp_path / "back.pt", None)
    assert found == ({"attn.c_attn": [RANK], "mlp.c_fc": [RANK], "transformer.wte": [RANK]}, 7.5, parts)
    back = TorchFile(tmp_path / "back.pt")
    assert back.keys() == tensors.keys()
    assert all(back[name].dtype == np.float32 and back[name].tobytes() == tensors[name].tobytes() for name in back)
    loralib_to_folder(tmp_path / "back.pt", tmp_path / "again", "gpt2", 7.5, parts)
    folder_to_loralib(tmp_path / "again", tmp_path / "back2.pt", None)
    assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "back2.pt").read_bytes()


def shared(rank: int = 3, zero: str = "") -> Factors:
    """An update of c_attn with one A, as PEFT trains it."""
    b = draw(3 * WIDTH, rank)
    for part in zero:
        b["qkv".index(part) * WIDTH :][:WIDTH] = 0
    return Factors(draw(rank, WIDTH), b, 32 / rank)


@given(st.sampled_from(["", "k", "qk", "qkv"]), st.sampled_from([None, "qkv"]), st.integers(1, 6), st.booleans())
def test_any_update_of_c_attn_can_be_written(tmp_path_factory, zero, enabled, rank, other):
    """Also with other ranks and scalings beside it: what is read again is the same update."""
    factors = {"transformer.h.10.attn.c_attn": shared(rank, zero), "transformer.h.9.attn.c_attn": shared(2, zero),
               "transformer.h.0.mlp.c_fc": Factors(draw(2, WIDTH), draw(9, 2), 0.3 if other else 16.0)}
    path = tmp_path_factory.mktemp("l") / "lora.pt"
    found = write_loralib(path, factors, enabled)
    again = read_loralib(path, found.alpha, found.enabled).factors
    assert list(again) == ["transformer.h.0.mlp.c_fc", "transformer.h.9.attn.c_attn", "transformer.h.10.attn.c_attn"]
    for module, pair in factors.items():
        np.testing.assert_allclose(again[module].delta(), pair.delta(), rtol=1e-5, atol=1e-5)
    if not zero and enabled is None:
        assert found.enabled is None  # a plain layer has all three with one A
        np.testing.assert_array_equal(TorchFile(path)["transformer.h.10.attn.c_attn.lora_A"], shared(rank).a)


def test_updates_that_are_not_written(tmp_path):
    factors = {"transformer.h.0.attn.c_attn": shared(), "transformer.h.1.attn.c_attn": shared(zero="k")}
    with pytest.raises(UserError) as caught:
        write_loralib(tmp_path / "x.pt", factors, "qv")
    assert "h.0.attn.c_attn: also updates k" in str(caught.value) and "h.1" not in str(caught.value)
    with pytest.raises(UserError, match="no update of c_attn"):
        write_loralib(tmp_path / "x.pt", {"transformer.h.0.mlp.c_fc": Factors(draw(2, 6), draw(9, 2), 1.0)}, "q")
    with pytest.raises(UserError, match="c_fc.B: holds numbers that are not finite"):
        write_loralib(tmp_path / "x.pt", {"transformer.h.0.mlp.c_fc": Factors(draw(2, 6), draw(9, 2) / 0, 1.0)})
    assert not list(tmp_path.iterdir())


def test_the_verb_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, arrays({"attn.c_attn": fused()}))
    assert main(["adapter", "convert", "model.pt", "out", "--alpha", "32"]) == 0
    capsys.readouterr()
    assert main(["adapter", "convert", "out", "back.pt"]) == 0
    assert capsys.readouterr().out == (
        "back.pt: load it into loralib's layers with lora_alpha=32, r=2 in attn.c_attn; c_attn is a MergedLinear with "
        "enable_lora=[True, False, True].\n")
    assert read_adapter_folder(tmp_path / "out").parameters == sum(a.size for a in TorchFile(tmp_path / "back.pt")
                                                                   .values()) + 2 * 2 * 2 * 2 * WIDTH
    for arguments, expected in ((["back.pt"], "the file exists"), (["x.pt", "--enable-lora", "q"], "also updates v"),
                                (["x.npz", "--enable-lora", "q,v"], "as SOURCE or TARGET"),
                                (["x.pt", "--alpha", "3"], "--alpha needs a file as SOURCE"),
                                (["x.bin"], "ends in .npz or .pt")):
        assert main(["adapter", "convert", "out", *arguments]) == 2
        assert expected in capsys.readouterr().err
