"""Adapters of mlx-lm, litgpt and llama.cpp: written and read back, read from files of these programs, refused.

The programs themselves: tests/parity/test_other_adapters.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import tiny
import torch_files
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.formats import litgpt_adapter, mlx_adapter
from jittor_lora.formats.adapter_export import updates_of
from jittor_lora.formats.adapter_source import open_adapter
from jittor_lora.formats.low_rank import LowRank
from jittor_lora.formats.peft import load_adapter
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import adapters_of, inject
from jittor_lora.model.load import build_model

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters.npz"  # made by tests/parity/make_adapters.py
FAMILIES = ("gpt2", "llama", "llama-untied", "llama-one-key", "qwen2", "qwen3")
LLAMA = DEFAULT_TARGETS["llama"]
Q = "model.layers.0.self_attn.q_proj"
WRITERS = {"mlx": mlx_adapter.write, "litgpt": litgpt_adapter.write}


def network(variant: str):
    return build_model(tiny.config(tiny.VARIANTS[variant]), tiny.tensors(tiny.VARIANTS[variant]))


def adapted(model, **changes):
    adapter = inject(model, LoraConfig(**changes))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    return adapter


def write_gguf(path: Path, updates: LowRank, variant: str, alpha: float | None, kind: str = "F32") -> None:
    """llama.cpp's file, by the rule of its converter: Llama's halves of each head of q and k interleaved."""
    config = tiny.config(tiny.VARIANTS[variant])
    writer = gguf.GGUFWriter(path, "llama" if config.family == "mistral" else config.family)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for module, pair in updates.factors.items():
        number, place = module.split(".", 3)[2:] if module != "lm_head" else ("", "")
        b, heads = pair.b, {"self_attn.q_proj": config.heads, "self_attn.k_proj": config.kv_heads}.get(place)
        if heads and config.family == "llama":
            b = b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
        stored = "output" if module == "lm_head" else f"blk.{number}.{GGUF_NAMES[place]}"
        for part, array in (("a", pair.a), ("b", b)):
            array = np.ascontiguousarray(array, np.float16 if kind == "F16" else np.float32)
            writer.add_tensor(f"{stored}.weight.lora_{part}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_NAMES = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
              "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down"}


@st.composite
def adapters(draw):
    """A variant and the settings of an adapter of it."""
    variant = draw(st.sampled_from(FAMILIES))
    targets = draw(st.lists(st.sampled_from(DEFAULT_TARGETS[variant.split("-")[0]]), min_size=1, unique=True))
    heads = variant == "llama-untied" and draw(st.booleans())
    of = {"r": draw(st.integers(1, 5)), "alpha": draw(st.sampled_from([1.0, 7.5, 32.0])),
          "target_modules": (*targets, "lm_head") if heads else tuple(targets), "use_rslora": draw(st.booleans()),
          "dropout": 0.0 if heads else draw(st.sampled_from([0.0, 0.1])),
          "layers_to_transform": None if heads else draw(st.sampled_from([None, (1,), (0,)])),
          "rank_pattern": draw(st.sampled_from([{}, {targets[0]: 3}])), "use_dora": draw(st.booleans()),
          "init": draw(st.sampled_from(["gaussian", "pissa"]))}
    return variant, of


@given(adapters(), st.sampled_from(["mlx", "litgpt", "gguf"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(tmp_path_factory, drawn, form):
    variant, of = drawn
    if form != "mlx":
        of["use_dora"] = False
    if form == "litgpt" and variant == "gpt2":
        variant, of["target_modules"] = "llama", ("v_proj", "up_proj")
        of["rank_pattern"] = {}
    model, again = network(variant), network(variant)
    adapter = adapted(model, **of)
    updates = updates_of(adapter, "some/base")
    path = tmp_path_factory.mktemp("out") / "adapter"
    if form == "gguf":
        updates = updates._replace(factors={module: Factors(pair.a, pair.b * np.float32(pair.scaling), 1.0)
                                            for module, pair in updates.factors.items()})
        write_gguf(path, updates, variant, None)
    else:
        path.mkdir()
        WRITERS[form](path, updates, model.config)
    source = open_adapter(path)
    assert source.settings["base_model_name_or_path"] == (None if form == "gguf" else "some/base")
    loaded = load_adapter(source, again)
    assert loaded.config.dropout == (0.0 if form == "gguf" else of["dropout"])
    written = {module: update for module, update in loaded.updates.items() if np.any(update.lora_B.numpy())}
    assert written.keys() == adapter.updates.keys()
    for module, update in adapter.updates.items():
        for mine, theirs in zip(effect(update), effect(written[module])):
            np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-6)


def effect(update):
    """ΔW, and DoRA's magnitudes."""
    a, b = update.factors()
    return b @ a, np.zeros(1) if update.magnitude is None else update.magnitude.numpy()


def test_what_mlx_lm_reads(tmp_path):
    """num_layers counts from the last block; keys are names within a block; GPT-2's root is `model`."""
    model = network("gpt2")
    mlx_adapter.write(tmp_path, updates_of(adapted(model, r=3, alpha=6.0, target_modules=("c_attn", "mlp.c_proj"),
                                                   layers_to_transform=(1,), dropout=0.1), "gpt2"), model.config)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "model": "gpt2", "fine_tune_type": "lora", "num_layers": 1,
        "lora_parameters": {"rank": 3, "scale": 2.0, "dropout": 0.1, "keys": ["attn.c_attn", "mlp.c_proj"]}}
    assert {name: array.shape for name, array in load_file(tmp_path / "adapters.safetensors").items()} == {
        "model.h.1.attn.c_attn.lora_a": (24, 3), "model.h.1.attn.c_attn.lora_b": (3, 72),
        "model.h.1.mlp.c_proj.lora_a": (96, 3), "model.h.1.mlp.c_proj.lora_b": (3, 24)}


@pytest.mark.parametrize("rank", [2, 4])
def test_alpha_of_gguf_counts_by_the_rank_of_each_matrix(tmp_path, rank):
    pairs = {Q: (2, 24, 24), "model.layers.1.mlp.up_proj": (rank, 24, 40)}
    draw = np.random.RandomState(0)
    factors = {module: Factors(draw.standard_normal((r, i)).astype(np.float16),
                               draw.standard_normal((o, r)).astype(np.float16), 1.0) for module, (r, i, o)
               in pairs.items()}
    write_gguf(tmp_path / "a", LowRank(factors, 2, 8.0), "llama", 8.0, "F16")
    loaded = load_adapter(tmp_path / "a", network("llama"))
    for module, update in loaded.updates.items():
        pair = factors[module]
        np.testing.assert_allclose(effect(update)[0], 8.0 / len(pair.a) * (pair.b.astype(np.float32) @ pair.a.astype(
            np.float32)), rtol=1e-4, atol=1e-5)


def test_litgpt_before_0_5_4(tmp_path):
    """With q, k and v, row i of lora_B belongs to row i of a matrix that is ordered by group."""
    config = tiny.config(tiny.VARIANTS["llama"])  # 4 heads of 6 rows, 2 groups: q 24 rows, k and v 12 each
    draw = np.random.RandomState(0)
    a, b = draw.standard_normal((6, 24)).astype(np.float32), draw.standard_normal((48, 2)).astype(np.float32)
    (tmp_path / "lit_model.pth.lora").write_bytes(torch_files.saved({"transformer.h.1.attn.attn.lora_A": a,
                                                                     "transformer.h.1.attn.attn.lora_B": b}))
    (tmp_path / "hyperparameters.yaml").write_text("lora_r: 2\nlora_alpha: 3\nlora_query: true\nlora_key: true\n"
                                                   "lora_value: true\n")
    loaded = load_adapter(tmp_path, build_model(config, tiny.tensors(tiny.VARIANTS["llama"])))
    delta = np.concatenate([1.5 * b[rows] @ a[2 * i : 2 * i + 2]
                            for i, rows in enumerate((slice(0, 24), slice(24, 36), slice(36, 48)))])
    group = delta.reshape(2, 4, 6, 24)  # of each group two heads of queries, one of keys, one of values
    expected = {"q_proj": group[:, :2], "k_proj": group[:, 2:3], "v_proj": group[:, 3:]}
    for part, rows in expected.items():
        np.testing.assert_allclose(effect(loaded.updates[f"model.layers.1.self_attn.{part}"])[0],
                                   rows.reshape(-1, 24), rtol=1e-4, atol=1e-5)


def test_what_the_programs_compute(tmp_path):
    """Adapters that mlx-lm 0.32 and litgpt 0.5 and 0.4 trained, with the logits they gave."""
    with np.load(GOLDEN) as golden:
        for case in dict.fromkeys(name.split("/")[0] for name in golden.files):
            folder = tmp_path / case
            folder.mkdir()
            for name in golden.files:
                if name.startswith(f"{case}/") and name != f"{case}/logits":
                    (folder / name.split("/")[1]).write_bytes(golden[name].tobytes())
            model = network("gpt2" if "gpt2" in case else "llama")
            before = logits(model)
            load_adapter(folder, model)
            np.testing.assert_allclose(logits(model), golden[f"{case}/logits"], atol=1e-4, err_msg=case)
            assert np.abs(logits(model) - before).max() > 0.5


def logits(model) -> np.ndarray:
    tokens = tiny.tokens(24)
    hidden = model.hidden(tokens, np.arange(24, dtype=np.int32), Layout.plain(24))
    return model.logits(hidden).numpy()


# --- refused ---------------------------------------------------------------------------------------------------------


def refusal(read) -> str:
    with pytest.raises(UserError) as caught:
        read()
    return str(caught.value)


@pytest.fixture(scope="module")
def llama():
    """One for all refusals: they leave it unchanged."""
    return network("llama")


def files(folder: Path, form: str, llama) -> tuple[Path, dict]:
    """A good adapter, and the settings of its file."""
    updates = LowRank({Q: Factors(np.ones((2, 24), np.float32), np.ones((24, 2), np.float32), 1.0)}, 2, 2.0)
    WRITERS[form](folder, updates, llama.config)
    if form == "mlx":
        return folder, json.loads((folder / "adapter_config.json").read_text())
    return folder, {}


def test_wrong_settings_are_all_listed(tmp_path, llama):
    folder, values = files(tmp_path, "mlx", llama)
    values.update(fine_tune_type="ia3", lora_parameters={"rank": 1 << 40, "scale": -1, "dropout": 1.5})
    (folder / "adapter_config.json").write_text(json.dumps(values))
    said = refusal(lambda: open_adapter(folder))
    assert all(word in said for word in ("ia3", "lora_parameters.rank", "lora_parameters.scale", "1.5"))
    values["fine_tune_type"] = "full"
    (folder / "adapter_config.json").write_text(json.dumps(values))
    assert "mlx_lm.fuse" in refusal(lambda: open_adapter(folder))
    (folder / "hyperparameters.yaml").write_text("lora_r: -3\nlora_alpha: .inf\nlora_query: 'yes please'\n")
    (folder / "adapter_config.json").unlink()
    said = refusal(lambda: open_adapter(folder))
    assert all(word in said for word in ("lora_r", "lora_alpha", "lora_query"))


@pytest.mark.parametrize("text", ["lora_r: &a 2\nx: [*a, *a]\nlora_alpha: 1\n",
                                  "lora_r: !!python/object/apply:os.system ['true']\n",
                                  "lora_r: 2\nx: " + "[" * 30 + "]" * 30, "- lora_r", "\xff\xfe"])
def test_yaml_that_is_more_than_settings(tmp_path, llama, text):
    folder, _ = files(tmp_path, "litgpt", llama)
    (folder / "hyperparameters.yaml").write_text(text, encoding="latin-1")
    assert str(folder / "hyperparameters.yaml") in refusal(lambda: open_adapter(folder))


A, B = np.ones((24, 2), np.float32), np.ones((2, 24), np.float32)
WRONG_MLX = {
    "a pair without its half": ({f"{Q}.lora_a": A}, "lora_a alone"),
    "another rank": ({f"{Q}.lora_a": A[:, :1], f"{Q}.lora_b": B[:1]}, "expected rank 2 as in the settings, found 1"),
    "another base": ({f"{Q}.lora_a": A[:20], f"{Q}.lora_b": B}, "expected shape (2, 24), found (2, 20)"),
    "an unknown module": ({"model.layers.7.self_attn.q_proj.lora_a": A, "model.layers.7.self_attn.q_proj.lora_b": B},
                          "model.layers.7.self_attn.q_proj"),
    "not finite": ({f"{Q}.lora_a": A * np.nan, f"{Q}.lora_b": B}, "48 NaN"),
    "whole numbers": ({f"{Q}.lora_a": A.astype(np.int32), f"{Q}.lora_b": B}, "I32"),
    "experts": ({f"{Q}.lora_a": A[None], f"{Q}.lora_b": B[None]}, "(1, 24, 2)"),
    "a magnitude": ({f"{Q}.lora_a": A, f"{Q}.lora_b": B, f"{Q}.m": A[:, 0]}, "expected no magnitude m"),
    "PEFT's names": ({f"base_model.model.{Q}.lora_A.weight": A}, "such as model.layers.0.self_attn.q_proj.lora_a"),
    "a tied head": ({"model.embed_tokens.lora_a": np.ones((61, 2), np.float32), "model.embed_tokens.lora_b": B},
                    "updates both together"),
    "nothing": ({}, "holds no arrays"),
}


@pytest.mark.parametrize("tensors, word", WRONG_MLX.values(), ids=WRONG_MLX)
def test_wrong_tensors_of_mlx(tmp_path, llama, tensors, word):
    folder, _ = files(tmp_path, "mlx", llama)
    save_file(tensors, folder / "adapters.safetensors")
    said = refusal(lambda: load_adapter(folder, llama))
    assert word in said and str(folder) in said and not adapters_of(llama)


def test_truncated_files(tmp_path, llama):
    for form, name in (("mlx", "adapters.safetensors"), ("litgpt", "lit_model.pth.lora")):
        (tmp_path / form).mkdir()
        folder, _ = files(tmp_path / form, form, llama)
        content = (folder / name).read_bytes()
        for length in (0, 7, len(content) // 2, len(content) - 1):
            (folder / name).write_bytes(content[:length])
            assert str(folder / name) in refusal(lambda folder=folder: load_adapter(folder, llama))
        (folder / name).unlink()
        assert str(folder / name) in refusal(lambda folder=folder: load_adapter(folder, llama))
    write_gguf(tmp_path / "a.gguf", LowRank({Q: Factors(B, A, 1.0)}, 2, 2.0), "llama", 2.0)
    content = (tmp_path / "a.gguf").read_bytes()
    for length in (4, len(content) // 2, len(content) - 1):
        (tmp_path / "a.gguf").write_bytes(content[:length])
        assert "a.gguf" in refusal(lambda: load_adapter(tmp_path / "a.gguf", llama))


def test_wrong_tensors_of_litgpt(tmp_path, llama):
    folder, _ = files(tmp_path, "litgpt", llama)
    name = "transformer.h.0.attn.qkv.lora_"
    for tensors, word in (
            ({f"{name}A": B, f"{name}B": A[:20]}, "expected lora_A (2, in) and lora_B (24, 2) for lora_query"),
            ({f"{name}A": np.tile(B, (3, 1)), f"{name}B": A}, "found (6, 24) and (24, 2)"),
            ({f"{name}A": B}, "lora_A alone"), ({f"{name}A": B, f"{name}B": A / 0.0}, "48 infinite"),
            ({"transformer.h.0.attn.proj.lora_A": B[:1], "transformer.h.0.attn.proj.lora_B": A[:, :1]},
             "expected rank 2"),
            ({"transformer.h.0.mlp.fc.lora_A": B}, "such as transformer.h.0.attn.qkv.lora_A")):
        (folder / "lit_model.pth.lora").write_bytes(torch_files.saved(tensors))
        assert word in refusal(lambda: load_adapter(folder, llama))
    assert "and no gpt2" in refusal(lambda: load_adapter(folder, network("gpt2")))
    assert "--base" in refusal(lambda: open_adapter(folder).contents())


def test_wrong_gguf_adapters(tmp_path, llama):
    path, good = tmp_path / "a.gguf", {Q: Factors(B, A, 1.0)}
    for variant, factors, alpha, word in (
            ("llama", {**good, "model.layers.9.mlp.up_proj": good[Q]}, 2.0, "blk.9.ffn_up.weight.lora_a: no such"),
            ("llama", {Q: Factors(B, A[:16], 1.0)}, 2.0, "lora_b (24, r)"),
            ("llama", {Q: Factors(B[:1], A, 1.0)}, 2.0, "found (1, 24) and (24, 2)"),
            ("llama", {Q: Factors(B * np.inf, A, 1.0)}, 2.0, "not finite"),
            ("llama", good, -2.0, "adapter.lora.alpha"), ("llama", good, float("nan"), "adapter.lora.alpha"),
            ("qwen2", good, 2.0, "general.architecture: expected llama, that of the base, found 'qwen2'")):
        write_gguf(path, LowRank(factors, 2, 2.0), variant, alpha)
        assert word in refusal(lambda: load_adapter(path, llama)), word
    write_gguf(path, LowRank(good, 2, 2.0), "llama", 2.0)
    assert "adapter convert" in refusal(lambda: open_adapter(path).contents())


def test_what_a_format_cannot_hold_is_not_written(tmp_path):
    llama, gpt2 = network("llama"), network("gpt2")
    dora = updates_of(adapted(llama, r=2, target_modules=("q_proj",), use_dora=True), None)
    assert "DoRA" in refusal(lambda: litgpt_adapter.write(tmp_path, dora, llama.config))
    of_gpt2 = updates_of(adapted(gpt2, r=2, target_modules=("c_attn", "wte")), None)
    assert "no gpt2" in refusal(lambda: litgpt_adapter.write(tmp_path, of_gpt2, gpt2.config))
    assert "wte" in refusal(lambda: mlx_adapter.write(tmp_path, of_gpt2, gpt2.config))
    more = adapted(network("gpt2"), r=2, target_modules=("c_attn",), modules_to_save=("ln_f",), bias="lora_only")
    said = refusal(lambda: updates_of(more, None))
    assert "transformer.ln_f" in said and "h.0.attn.c_attn: a trained bias" in said
    assert list(tmp_path.iterdir()) == []
