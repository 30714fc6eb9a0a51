"""GGUF files as they are written: read again by our own reader, byte by byte where a base is kept."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import gguf_tokenizers
import model_files
import small_run
import tiny
from jittor_lora.errors import UserError
from jittor_lora.formats.gguf import read_gguf
from jittor_lora.formats.gguf_adapter import write_gguf_adapter
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_metadata import as_llama_cpp_has_it
from jittor_lora.formats.gguf_model import metadata_of, plan_tensors
from jittor_lora.formats.gguf_tokenizer import gguf_tokenizer
from jittor_lora.formats.gguf_vocabulary import vocabulary_metadata
from jittor_lora.formats.gguf_writer import Typed, write_gguf
from jittor_lora.formats.tokenizer import Tokenizer as OurTokenizer
from jittor_lora.formats.tokenizer import read_tokenizer
from jittor_lora.lora.combine import Factors
from jittor_lora.model.config import tensor_shapes
from jittor_lora.model.rotary import frequencies

GGML = gguf.GGMLQuantizationType
TEXTS = st.text(st.sampled_from("ab \n\0é北🎉"), max_size=6)


def write(path, source, tensors, out_type, base=None, merged=()):
    """The file of a model; `merged` names the tensors that an adapter changed."""
    config = as_llama_cpp_has_it(tiny.config(source))
    tokenizer = OurTokenizer(model_files.make_bpe(), {"eos_token": "<|endoftext|>"}, "test", 299)
    file = GgufFile(base) if base else None
    plans = plan_tensors(config, tensors, out_type, file, lambda name: name in merged)
    with open(path, "wb") as stream:
        write_gguf(stream, config.family, metadata_of(config, tokenizer, out_type, file, "a/base", "{{ x }}"), plans)
    return read_gguf(path)


@st.composite
def configs(draw):
    family = draw(st.sampled_from(tiny.FAMILIES))
    heads, layers = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 2))
    tied = draw(st.booleans())
    ends = {"eos_token_id": 299, "bos_token_id": None, "tie_word_embeddings": tied}
    if family == "gpt2":
        return {**small_run.GPT2, **ends, "n_head": heads, "n_layer": layers,
                "n_inner": draw(st.sampled_from([64, 128])), "layer_norm_epsilon": draw(st.sampled_from([1e-5, 3e-6]))}
    config = {**model_files.LLAMA, **ends, "model_type": family, "num_attention_heads": heads,
              "num_hidden_layers": layers, "num_key_value_heads": draw(st.sampled_from([1, heads])),
              "head_dim": draw(st.sampled_from([4, 10])), "intermediate_size": draw(st.sampled_from([64, 40])),
              "rope_theta": draw(st.sampled_from([1e4, 5e5])), "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
              "sliding_window": None}
    if family == "llama":
        config["attention_bias"], config["mlp_bias"] = draw(st.booleans()), draw(st.booleans())
        config["rope_scaling"] = draw(st.sampled_from([None, {"rope_type": "linear", "factor": 2.5}, {
            **tiny.LLAMA3_ROPE, "original_max_position_embeddings": 64}]))
    return config


@settings(max_examples=40)
@given(configs(), st.sampled_from(["f32", "f16", "bf16", "q8_0"]))
def test_a_model_reads_back(tmp_path_factory, source, out_type):
    path = tmp_path_factory.mktemp("model") / "x.gguf"
    tensors, config = tiny.tensors(source), tiny.config(source)
    found = write(path, source, tensors, out_type)
    fields = ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size", "tied_head",
              "max_positions", "norm_eps", "rope_theta", "biased", "qk_norm", "activation", "eos_token_ids")
    assert {f: getattr(found.config, f) for f in fields} == {f: getattr(config, f) for f in fields}
    if config.rope_theta:  # with few frequencies several scalings are the same
        angles = [frequencies(c.head_dim, c.rope_theta, c.rope_scaling) for c in (found.config, config)]
        np.testing.assert_allclose(*angles, rtol=1e-5)
    assert list(found.tensors) == list(tensor_shapes(config))
    file = GgufFile(path)
    for name, expected in tensors.items():
        error = np.abs(found.tensors[name] - expected).max()
        if out_type == "f32" or expected.ndim == 1:
            assert error == 0, name
        else:
            assert error <= np.abs(expected).max() / (200 if out_type != "f16" else 2000), name
    kinds = {GGML(entry.kind).name for entry in file.entries.values() if len(entry.shape) == 2}
    wanted = out_type.upper()
    assert kinds <= {wanted, "F16", *(["F32"] if config.network == "gpt2" else [])} and wanted in kinds
    assert (file.metadata["general.file_type"], file.metadata["tokenizer.chat_template"]) == (
        {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[out_type], "{{ x }}")


def test_the_librarys_own_reader(tmp_path):
    """Alignment, offsets and types of metadata as it sees them."""
    tensors = tiny.tensors(model_files.LLAMA)
    write(tmp_path / "x.gguf", model_files.LLAMA, tensors, "q8_0")
    reader, file = gguf.GGUFReader(tmp_path / "x.gguf"), GgufFile(tmp_path / "x.gguf")
    assert {tensor.name: tensor.data.tobytes() for tensor in reader.tensors} == {
        name: file.raw(name).tobytes() for name in file}
    assert reader.fields["llama.rope.freq_base"].types == [gguf.GGUFValueType.FLOAT32]
    assert reader.fields["llama.block_count"].types == [gguf.GGUFValueType.UINT32]
    assert reader.fields["tokenizer.ggml.token_type"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]


@pytest.mark.parametrize("kind", ["Q4_1", "F16", "Q4_K"])
@pytest.mark.parametrize("family", ["gpt2", "llama3"])
def test_a_kept_base(tmp_path, family, kind):
    """What is not merged is the file's, byte for byte; so are the metadata, types included."""
    source = dict(model_files.GGUF_MODELS[family])
    source.update({"n_embd": 256, "n_inner": 512} if family == "gpt2" else
                  {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512})
    base, path = tmp_path / "base.gguf", tmp_path / "x.gguf"
    model_files.make_gguf(base, source, tiny.tensors(source), kind, changed={
        "general.name": "Base", "made.up": [7, 8], "negative": -1.5})
    before = read_gguf(base)
    merged = [name for name in before.tensors if "1." in name and ("c_fc.w" in name or "k_proj.w" in name)]
    assert len(merged) == 1
    changed = {**before.tensors, merged[0]: before.tensors[merged[0]] + np.float32(0.5)}
    again = write(path, source, changed, "kept", base, merged)
    old, new = GgufFile(base), GgufFile(path)
    differ = [name for name in old.entries if old.entries[name].kind != new.entries[name].kind
              or old.raw(name).tobytes() != new.raw(name).tobytes()]
    assert len(differ) == 1 and list(old.entries)[0] in new.entries and set(old.entries) == set(new.entries)
    assert GGML(new.entries[differ[0]].kind).name == "F16"
    np.testing.assert_allclose(again.tensors[merged[0]], changed[merged[0]], rtol=1e-3)
    for key in old.metadata:
        assert np.array_equal(old.metadata[key], new.metadata[key]), key
    assert {key: kinds for key, kinds in new.metadata_types().items() if key in old.metadata} == {
        key: kinds for key, kinds in old.metadata_types().items() if key in new.metadata}
    if kind == "Q4_K":
        with pytest.raises(UserError, match="(?s)types that the gguf library can quantise.*: Q4_K.*llama-quantize"):
            write(tmp_path / "y.gguf", source, changed, "requantised", base, merged)
    else:
        write(tmp_path / "y.gguf", source, changed, "requantised", base, merged)
        assert GGML(GgufFile(tmp_path / "y.gguf").entries[differ[0]].kind).name == kind


def test_a_kept_base_with_new_head_and_tokens(tmp_path):
    """An adapter that unties the head and adds two tokens."""
    source, base = model_files.LLAMA, tmp_path / "base.gguf"
    model_files.make_gguf(base, source, tiny.tensors(source), "Q8_0")
    wider = {**source, "vocab_size": 302, "tie_word_embeddings": False}
    tensors = tiny.tensors(wider)
    merged = ["model.embed_tokens.weight", "lm_head.weight"]
    found = write(tmp_path / "x.gguf", wider, {**read_gguf(base).tensors, **{name: tensors[name] for name in merged}},
                  "kept", base, merged)
    assert not found.config.tied_head and found.config.vocab_size == 302
    np.testing.assert_allclose(found.tensors["lm_head.weight"], tensors["lm_head.weight"], atol=1e-3)
    file = GgufFile(tmp_path / "x.gguf")
    assert len(file.metadata["tokenizer.ggml.tokens"]) == len(file.metadata["tokenizer.ggml.token_type"]) == 302


def test_types_that_a_base_does_not_have(tmp_path):
    with pytest.raises(UserError, match="--outtype kept: expected a GGUF file as the base"):
        write(tmp_path / "x.gguf", model_files.LLAMA, tiny.tensors(model_files.LLAMA), "kept")


@pytest.mark.parametrize("value, out_type, message", [
    (7e4, "f16", "float16 ends at 65,504. Write the file with --outtype bf16 or f32"), (7e4, "bf16", None),
    (float("nan"), "f32", "not finite"), (float("inf"), "q8_0", "not finite")])
def test_numbers_that_do_not_fit(tmp_path, value, out_type, message):
    tensors = tiny.tensors(model_files.LLAMA)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    if message is None:
        write(tmp_path / "x.gguf", model_files.LLAMA, tensors, out_type)
    else:
        with pytest.raises(UserError, match=f"layers.1.mlp.up_proj.weight: .*{message}"):
            write(tmp_path / "x.gguf", model_files.LLAMA, tensors, out_type)


@settings(max_examples=40)
@given(st.dictionaries(st.text(st.sampled_from("ab.é"), min_size=1, max_size=6), st.one_of(
    TEXTS, st.booleans(), st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False),
    st.lists(TEXTS), st.lists(st.integers(-2**31, 2**31 - 1)),
    st.integers(-2**63, 2**63 - 1).map(lambda n: Typed(n, 11)), st.floats(allow_nan=False).map(lambda x: Typed(x, 12)),
    st.lists(st.booleans()).map(lambda x: Typed(x, 9, 7))), max_size=4))
def test_metadata_read_back(tmp_path_factory, metadata):
    path = tmp_path_factory.mktemp("metadata") / "x.gguf"
    with open(path, "wb") as stream:
        write_gguf(stream, "llama", metadata, [])
    plain = {key: value.value if isinstance(value, Typed) else value for key, value in metadata.items()}
    found = {key: value.tolist() if isinstance(value, np.ndarray) else value
             for key, value in GgufFile(path).metadata.items()}
    assert found == {"general.architecture": "llama", **{key: value for key, value in plain.items() if value != []}}


# --- tokenizers ---


@pytest.mark.parametrize("pre", gguf_tokenizers.PRES)
def test_tokenizers_read_back(tmp_path, pre):
    made = gguf_tokenizers.byte_level(pre)
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": gguf_tokenizers.BEGIN, "eos_token": gguf_tokenizers.END, "pad_token": gguf_tokenizers.PAD}))
    ours = read_tokenizer(tmp_path)
    metadata = vocabulary_metadata(ours, ours.vocab_size + 2)
    assert metadata["tokenizer.ggml.pre"] == pre
    with open(tmp_path / "x.gguf", "wb") as stream:
        write_gguf(stream, "llama", metadata, [])
    again = gguf_tokenizer(GgufFile(tmp_path / "x.gguf"))
    assert again.vocabulary.items() >= ours.vocabulary.items() and len(again.vocabulary) == len(ours.vocabulary) + 2
    assert (again.eos_id, again.opening, again.ending) == (ours.eos_id, ours.opening, ours.ending)
    for text in [*gguf_tokenizers.HARD, *gguf_tokenizers.hostile(60)]:
        assert again.begin(text) == ours.begin(text), text


def _bpe(**changed) -> Tokenizer:
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], **changed))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def _with(**parts) -> Tokenizer:
    made = _bpe()
    for name, value in parts.items():
        setattr(made, name, value)
    return made


def _flagged() -> Tokenizer:
    made = _bpe()
    made.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return made


def _opened() -> Tokenizer:
    made = _bpe()
    made.add_special_tokens(["<x>", "<y>"])
    made.post_processor = processors.TemplateProcessing("<x> <y> $A", special_tokens=[("<x>", 3), ("<y>", 4)])
    return made


WORDS = Tokenizer(models.WordLevel({"a": 0}, "a"))
PIECES = Tokenizer(models.BPE({"▁a": 0}, [], byte_fallback=True))


@pytest.mark.parametrize("made, message", [
    (WORDS, "expected byte-level BPE, found WordLevel"), (PIECES, "llama.cpp needs the scores of the pieces"),
    (_with(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), "expected the steps of one of gpt-2"),
    (_with(normalizer=normalizers.Lowercase()), "expected the steps of one of"),
    (_bpe(ignore_merges=True), "expected the steps of one of"),
    (_bpe(unk_token="a"), "model.unk_token: expected none, or a token for each of 256 bytes; found 'a', and no token "
                          "for 254 of them"),
    (_bpe(end_of_word_suffix="_"), "model.end_of_word_suffix"),
    (_flagged(), "'<mask>'"), (_opened(), "post_processor: expected bos_token or nothing")])
def test_tokenizers_that_llama_cpp_does_not_have(made, message):
    tokenizer = OurTokenizer(made, {"bos_token": "<x>"}, "files/tokenizer.json", 0)
    with pytest.raises(UserError, match="llama.cpp cannot tokenize") as caught:
        vocabulary_metadata(tokenizer, 9)
    assert message in str(caught.value) and "gguf-ready" in str(caught.value)


# --- adapters ---


@settings(max_examples=30)
@given(st.sampled_from(["gpt2", "llama", "mistral", "qwen3"]), st.lists(st.sampled_from([0.0, 0.5, 2.0, 3.0]),
       min_size=4, max_size=4), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_adapters_hold_their_updates(tmp_path_factory, family, scalings, ranks):
    """alpha / r · B A of each tensor, in llama.cpp's order of rows, whatever the modules' scalings."""
    path, config = tmp_path_factory.mktemp("adapter") / "x.gguf", tiny.config(tiny.VARIANTS[family])
    names = [name for name, shape in tensor_shapes(config).items() if len(shape) == 2 and "1." in name][:4]
    draw, factors = np.random.RandomState(0), {}
    for name, scaling, rank in zip(names, scalings, ranks):
        columns, out = tensor_shapes(config)[name] if family == "gpt2" else tensor_shapes(config)[name][::-1]
        factors[name[: -len(".weight")]] = Factors(draw.standard_normal((rank, columns)).astype(np.float32),
                                                   draw.standard_normal((out, rank)).astype(np.float32), scaling)
    write_gguf_adapter(path, config, factors)
    file, alpha = GgufFile(path), GgufFile(path).metadata["adapter.lora.alpha"]
    assert (file.metadata["general.type"], file.metadata["adapter.type"]) == ("adapter", "lora") and alpha != 0
    assert file.metadata["general.architecture"] == {"mistral": "llama"}.get(family, family)
    shown = {}  # a whole model whose weights are these updates, in llama.cpp's order
    for name, pair in zip(names, factors.values()):
        delta = {name: pair.delta().T if family == "gpt2" else pair.delta()}
        source = {**tiny.VARIANTS[family], "model_type": family}
        zeros = {key: np.zeros(shape, np.float32) for key, shape in tensor_shapes(config).items()}
        plans = plan_tensors(as_llama_cpp_has_it(tiny.config(source)), {**zeros, **delta}, "f32", None, lambda _: False)
        whole = next(plan for plan, key in zip(plans, tensor_shapes(config)) if key == name)
        shown[whole.name] = np.frombuffer(b"".join(whole.parts()), np.float32).reshape(whole.shape)
    assert set(file) == {f"{name}.lora_{part}" for name in shown for part in "ab"}
    for name, expected in shown.items():
        a, b = file[f"{name}.lora_a"], file[f"{name}.lora_b"]
        np.testing.assert_allclose(alpha / len(a) * (b @ a), expected, atol=1e-4)
