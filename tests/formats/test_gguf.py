from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.formats.gguf import read_gguf
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.hugging_face import read_checkpoint, write_checkpoint
from jittor_lora.model.rotary import RopeScaling, frequencies
from model_files import GGUF_MODELS, LLAMA, make_folder, make_gguf, make_tensors


@pytest.fixture(params=GGUF_MODELS)
def config(request) -> dict:
    """A config.json."""
    return dict(GGUF_MODELS[request.param])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_reads_back_what_llama_cpp_is_given(path, config, kind):
    expected = make_gguf(path, config, make_tensors(config), kind)
    checkpoint = read_gguf(path)
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in expected.items():
        assert np.array_equal(checkpoint.tensors[name], tensor), name
        assert checkpoint.tensors[name].dtype == np.float32


@pytest.mark.parametrize("kind", ["Q5_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ2_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_quantised_blocks_are_those_of_the_library(path, family, kind):
    """And llama.cpp's order of Llama's rows is undone after decoding."""
    wide = {**GGUF_MODELS[family], "hidden_size": 256, "num_attention_heads": 32, "num_key_value_heads": 32,
            "intermediate_size": 512}
    expected = make_gguf(path, wide, make_tensors(wide), kind)
    checkpoint = read_gguf(path)
    for name, tensor in expected.items():
        assert np.isfinite(tensor).all() and np.array_equal(checkpoint.tensors[name], tensor), name


@pytest.mark.parametrize("kind, width", [("Q4_K", 128), ("Q8_0", 48), ("IQ4_NL", 16)])
def test_rows_that_are_not_whole_blocks_are_refused(path, kind, width):
    """No program writes them."""
    values, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    number = gguf.GGMLQuantizationType[kind].value
    path.write_bytes(header(tensors=1, rest=text(b"x") + struct.pack("<IQQIQ", 2, width, 4, number, 0) + bytes(9999)))
    assert f"tensor x: rows of {width} values do not divide into blocks of {values}" in refused(path)


def test_a_hugging_face_folder_of_the_same_weights_is_the_same_model(path, tmp_path, config):
    """The configuration too, with the rotary frequencies."""
    tensors = make_tensors(config)
    make_gguf(path, config, tensors)
    epsilon = "layer_norm_epsilon" if config["model_type"] == "gpt2" else "rms_norm_eps"
    ends = {"bos_token_id": None, "eos_token_id": 299}
    whole = {**config, epsilon: 1e-5, "rope_theta": 5e5, **ends}
    expected = read_checkpoint(make_folder(tmp_path / "folder", whole, tensors))
    found = read_gguf(path)
    assert found.config == expected.config
    assert all(np.array_equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)


@pytest.mark.parametrize("scaling", [
    {"factor": 8.0}, {"factor": 32.0}, {"factor": 4.0, "original_max_position_embeddings": 256},
    {"factor": 3.5, "original_max_position_embeddings": 512}, {"factor": 16.0, "high_freq_factor": 8.0},
])
@pytest.mark.parametrize("head_dim", [6, 64, 128])
def test_llama_3s_frequencies_come_from_their_factors(path, scaling, head_dim):
    whole = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192, **scaling}
    config = {**LLAMA, "head_dim": head_dim, "rope_scaling": whole}
    make_gguf(path, config, make_tensors(config))
    found = read_gguf(path).config.rope_scaling
    stored = RopeScaling("llama3", whole["factor"], 1.0, whole["high_freq_factor"],
                         whole["original_max_position_embeddings"])
    expected = frequencies(head_dim, 5e5, stored)
    np.testing.assert_allclose(frequencies(head_dim, 5e5, found), expected, rtol=1e-5)
    if head_dim > 6:
        assert found == stored


def test_factors_of_one_scale_nothing(path):
    make_gguf(path, LLAMA, make_tensors(LLAMA), extra={"rope_freqs.weight": np.ones(4, np.float32)})
    assert read_gguf(path).config.rope_scaling is None


def test_many_rows_are_decoded_in_parts(path, config):
    config["vocab_size"] = 1500
    tensors = make_tensors(config)
    expected = make_gguf(path, config, tensors, "Q8_0")
    name = next(iter(tensors))
    assert np.array_equal(read_gguf(path).tensors[name], expected[name])


def test_settings_come_from_the_metadata(path, config):
    make_gguf(path, config, make_tensors(config))
    read = read_gguf(path).config
    assert (read.family, read.vocab_size, read.hidden_size, read.layers) == (config["model_type"], 300, 32, 2)
    assert (read.intermediate_size, read.eos_token_id) == (64, 299)
    assert read.max_positions == config.get("max_position_embeddings", 6)
    assert (read.norm_eps, read.tied_head) == (1e-5, True)  # not 9.999999747378752e-06
    if read.network == "llama":
        assert (read.heads, read.kv_heads, read.head_dim, read.rope_theta) == (4, 2, config["head_dim"], 5e5)
    else:
        assert (read.heads, read.activation) == (2, "gelu_tanh")


def test_the_model_can_be_saved_as_a_hugging_face_folder(path, tmp_path, config):
    make_gguf(path, config, make_tensors(config), "Q8_0")
    checkpoint = read_gguf(path)
    write_checkpoint(tmp_path / "saved", checkpoint)
    again = read_checkpoint(tmp_path / "saved")
    assert again.config == checkpoint.config
    assert all(np.array_equal(again.tensors[name], checkpoint.tensors[name]) for name in checkpoint.tensors)


def test_lists_in_the_metadata(path):
    kinds = {"I": [1, 2, 1 << 31], "b": [-1, 5], "?": [True, False], "d": [0.5]}
    codes = {"I": 4, "b": 1, "?": 7, "d": 12}
    pairs = b"".join(text(code.encode()) + struct.pack(f"<IIQ{len(values)}{code}", 9, codes[code], len(values), *values)
                     for code, values in kinds.items())
    pairs += text(b"words") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text("北".encode())
    path.write_bytes(header(pairs=5, rest=pairs))
    metadata = GgufFile(path).metadata
    assert {code: metadata[code].tolist() for code in kinds} == kinds and metadata["words"] == ["a", "北"]


def test_the_head_size_of_a_file_that_names_none(path):
    """llama.cpp's rule for any network; transformers' Qwen3 would have 128."""
    source = {**GGUF_MODELS["qwen3"], "head_dim": 8}
    nothing = {f"qwen3.attention.{name}_length": None for name in ("key", "value")}
    make_gguf(path, source, make_tensors(source), changed=nothing)
    assert read_gguf(path).config.head_dim == 8


def test_head(path, config):
    tensors = make_tensors(config)
    embedding = next(iter(tensors.values()))
    make_gguf(path, config, tensors, extra={"output.weight": embedding})
    assert read_gguf(path).config.tied_head and "lm_head.weight" not in read_gguf(path).tensors
    make_gguf(path, config, tensors, extra={"output.weight": embedding + 1})
    assert not read_gguf(path).config.tied_head
    assert np.array_equal(read_gguf(path).tensors["lm_head.weight"], embedding + 1)


def test_all_wrong_tensors_come_in_one_error(path, config):
    tensors = make_tensors(config)
    missing = next(name for name in tensors if ".ln_1.weight" in name or "k_proj.weight" in name)
    misshapen = list(tensors)[-1]
    broken = {name: tensor for name, tensor in tensors.items() if name != missing}
    broken[misshapen] = np.ones(5, np.float32)
    make_gguf(path, config, broken, extra={"new.weight": np.ones(3, np.float32)})
    text = refused(path)
    is_gpt2 = config["model_type"] == "gpt2"
    stored = "output_norm.bias" if is_gpt2 else "output_norm.weight"
    first = "blk.0.attn_norm.weight" if is_gpt2 else "blk.0.attn_k.weight"
    assert f"{first}: missing, expected shape {tensors[missing].shape}" in text
    assert f"{stored}: expected shape (32,); found (5,)" in text
    assert "new.weight: unexpected, of shape (3,)" in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"general.architecture": "mamba"}, "expected one of gpt2, llama, qwen2, qwen3; found mamba"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type: expected none or linear; found yarn"),
        ({"llama.expert_count": 8}, "no mixture of experts"),
        ({"llama.rope.dimension_count": 4, "llama.attention.key_length": 8}, "rope.dimension_count"),
        ({"llama.attention.value_length": 4}, "attention.value_length"),
        ({"llama.attention.sliding_window": 4}, "attention.sliding_window: expected none, or at least 6; found 4"),
        ({"llama.rope.scaling.type": "linear"}, "rope_scaling.factor"),
        ({"llama.attention.head_count": [4, 4]}, "num_attention_heads: expected a whole number"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
        ({"llama.block_count": None, "llama.context_length": None}, "missing: llama.block_count, llama.context_length"),
        ({"llama.block_count": 3}, "blk.2.attn_q.weight: missing"),
        ({"general.alignment": 0}, "general.alignment: expected a positive number"),
    ],
)
@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_models_that_compute_something_else_are_refused(path, config, changed, message):
    make_gguf(path, config, make_tensors(config), changed=changed)
    if "general.architecture" in changed:  # the writer adds it itself
        path.write_bytes(path.read_bytes().replace(b"llama", b"mamba", 1))
    assert message in refused(path)


@pytest.mark.parametrize("factors, message", [
    ([1, 2, 3, 4], "rope_freqs.weight: expected the factors of Llama 3's scaled rotary positions; found others"),
    ([1, 1, 0.5, 8], "found others"), ([1, 1, float("nan"), 8], "found others"),
    ([1, 1, float("inf"), 8], "found others"),
    ([1, 8], "rope_freqs.weight: expected a factor for each of the 8 / 2 frequencies; found (2,)"),
])
def test_other_rotary_positions_are_refused(path, factors, message):
    make_gguf(path, LLAMA, make_tensors(LLAMA), extra={"rope_freqs.weight": np.array(factors, np.float32)})
    assert message in refused(path)


def header(version: int = 3, tensors: int = 0, pairs: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


HUGE = 1 << 62
PLACED = text(b"x") + struct.pack("<IQIQ", 1, 4, 0, 0)  # four float32 at the start of the data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"GG", "truncated"),
        (b"PK\3\4" + bytes(40), "does not start with GGUF"),
        (header(version=1), "version 2 or 3; found 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(pairs=HUGE), f"a count of {HUGE}"),
        (header(tensors=HUGE), f"a count of {HUGE}"),
        (header(pairs=1, rest=bytes(5)), "truncated"),
        (header(pairs=1, rest=struct.pack("<Q", HUGE) + bytes(50)), f"a count of {HUGE}"),
        (header(pairs=1, rest=text(b"\xff\xff") + bytes(50)), "not UTF-8"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<I", 99) + bytes(50)), "unknown metadata type 99"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<II", 9, 9) + bytes(50)), "unknown array type 9"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, HUGE)), f"a count of {HUGE}"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 20) + bytes(50)), "a count of 1048576"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 0, 60) + bytes(50)), "a count of 60"),
        (header(pairs=2, rest=2 * (text(b"k") + struct.pack("<IB", 0, 1))), "metadata key k occurs twice"),
        (header(tensors=1, rest=text(b"x") + struct.pack("<I", 9) + bytes(99)), "expected 4 dimensions at most"),
        (header(tensors=1, rest=text(b"x") + struct.pack("<IQIQ", 1, 4, 77, 0) + bytes(99)), "its type (number 77)"),
        (header(tensors=1, rest=text(b"x") + struct.pack("<IQIQ", 1, 4, 24, 0) + bytes(99)), "its type (number 24)"),
        (header(tensors=1, rest=text(b"x") + struct.pack("<IQIQ", 1, 4, 8, 0) + bytes(99)), "blocks of 32"),
        (header(tensors=1, rest=text(b"x") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0) + bytes(99)), "truncated"),
        (header(tensors=1, rest=text(b"x") + struct.pack("<IQIQ", 1, 4, 0, HUGE) + bytes(99)), "truncated"),
        (header(tensors=2, rest=2 * PLACED + bytes(99)), "tensor x occurs twice"),
        (header(tensors=2, rest=PLACED + PLACED.replace(b"x", b"y") + bytes(99)), "tensor y overlaps another"),
    ],
)
def test_malformed_files_are_refused(path, content, message):
    path.write_bytes(content)
    assert message in refused(path)


def test_paths_that_are_not_files(tmp_path):
    assert "found nothing" in refused(tmp_path / "absent.gguf")
    assert "found a folder" in refused(tmp_path)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_a_truncated_file_is_refused_wherever_it_ends(path, config):
    make_gguf(path, config, make_tensors(config))
    content = path.read_bytes()
    for end in [*range(0, 2000, 97), len(content) // 2, len(content) - 32]:
        path.write_bytes(content[:end])
        message = refused(path)
        assert end < 4 or "The download may be incomplete: fetch the file again." in message


@settings(max_examples=60)
@given(flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files_are_refused_or_read_within_their_bounds(tmp_path_factory, flips):
    pairs = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    pairs += text(b"list") + struct.pack("<IIQ", 9, 8, 2) + text(b"ab") + text(b"c")
    content = bytearray(header(tensors=1, pairs=2, rest=pairs + PLACED + bytes(99)))
    for position, value in flips:
        content[position % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    path.write_bytes(bytes(content))
    try:
        file = GgufFile(path)
        assert all(file.raw(name).nbytes == entry.end - entry.begin for name, entry in file.entries.items())
    except UserError:
        pass
