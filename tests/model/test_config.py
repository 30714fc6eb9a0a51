from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.model.config import ModelConfig, tensor_shapes
from jittor_lora.model.families import FAMILIES
from jittor_lora.model.rotary import RopeScaling

GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": None}
QWEN2 = {**LLAMA, "model_type": "qwen2", "use_sliding_window": False}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 8}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}


def read(config: dict) -> ModelConfig:
    return ModelConfig.from_hugging_face(config, "config.json")


def problems(config: dict) -> str:
    with pytest.raises(UserError) as caught:
        read(config)
    return str(caught.value)


def test_gpt2_defaults_are_those_of_the_124m_model():
    config = read({"model_type": "gpt2"})
    assert (config.vocab_size, config.hidden_size, config.layers, config.heads) == (50257, 768, 12, 12)
    assert (config.head_dim, config.intermediate_size, config.max_positions) == (64, 3072, 1024)
    assert (config.norm_eps, config.activation, config.tied_head) == (1e-5, "gelu_tanh", True)
    assert (config.kv_heads, config.rope_theta, config.eos_token_id) == (12, 0.0, 50256)
    sizes = [shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in tensor_shapes(config).values()]
    assert sum(sizes) == 124_439_808


def test_llama_sizes():
    config = read(LLAMA)
    assert (config.heads, config.kv_heads, config.head_dim) == (6, 2, 4)
    assert (config.norm_eps, config.rope_theta, config.activation, config.tied_head) == (1e-6, 10000.0, "silu", False)
    shapes = tensor_shapes(config)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (8, 24)
    assert shapes["model.layers.1.self_attn.o_proj.weight"] == (24, 24)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (24, 40)
    assert shapes["lm_head.weight"] == (96, 24)
    assert "lm_head.weight" not in tensor_shapes(read({**LLAMA, "tie_word_embeddings": True}))


def test_llama_head_dim_of_its_own():
    config = read({**LLAMA, "head_dim": 16})
    assert tensor_shapes(config)["model.layers.0.self_attn.q_proj.weight"] == (96, 24)
    assert tensor_shapes(config)["model.layers.0.self_attn.o_proj.weight"] == (24, 96)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 500000, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 5e5}},
    ],
)
def test_rotary_base_in_its_several_spellings(settings):
    assert read({**LLAMA, **settings}).rope_theta == 5e5


@pytest.mark.parametrize(("settings", "scaling"), [
    ({"rope_scaling": LLAMA3_ROPE}, RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)),
    ({"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 5e5}}, RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)),
    ({"rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": None}},
     RopeScaling("llama3", 32.0, 1.0, 4.0, 32)),
    ({"rope_scaling": LLAMA3_ROPE, "original_max_position_embeddings": 16},
     RopeScaling("llama3", 32.0, 1.0, 4.0, 16)),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeScaling("linear", 2.0)),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}},
     RopeScaling("linear", 2.0)),
    ({"rope_scaling": {}, "rope_parameters": {"rope_type": "default"}}, None),
])
def test_scaled_rotary_positions(settings, scaling):
    assert read({**LLAMA, **settings}).rope_scaling == scaling


def test_biases_of_each_family():
    def biased(config):
        return {name.split(".")[-2] for name in tensor_shapes(read(config)) if name.endswith(".bias")}

    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert biased(LLAMA) == biased(MISTRAL) == biased(QWEN3) == set()
    assert biased({**LLAMA, "attention_bias": True}) == biased({**QWEN3, "attention_bias": True}) == attention
    assert biased({**LLAMA, "mlp_bias": True}) == mlp
    assert biased(QWEN2) == attention - {"o_proj"}
    assert tensor_shapes(read(QWEN2))["model.layers.0.self_attn.k_proj.bias"] == (8,)


def test_qwen3_has_norms_of_queries_and_keys_and_a_head_size_of_its_own():
    shapes = tensor_shapes(read({key: value for key, value in QWEN3.items() if key != "head_dim"}))
    assert shapes["model.layers.1.self_attn.q_norm.weight"] == (128,)
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (6 * 128, 24)
    assert not any("q_norm" in name for name in tensor_shapes(read(QWEN2)))


@pytest.mark.parametrize(("settings", "positions"), [
    ({**MISTRAL}, 32),
    ({**MISTRAL, "sliding_window": 32}, 32),
    ({**MISTRAL, "sliding_window": 20}, 20),
    ({**{key: value for key, value in MISTRAL.items() if key != "sliding_window"},
      "max_position_embeddings": 32768}, 4096),  # transformers' default
    ({**QWEN2, "sliding_window": 20}, 32),
    ({**QWEN2, "sliding_window": 20, "use_sliding_window": True}, 32),  # from layer 28 on
    ({**QWEN2, "sliding_window": 20, "use_sliding_window": True, "max_window_layers": 1}, 20),
    ({**QWEN3, "sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, 32),
    ({**QWEN3, "sliding_window": 20, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, 32),
    ({**QWEN3, "sliding_window": 20, "use_sliding_window": True,
      "layer_types": ["full_attention", "sliding_attention"]}, 20),
])
def test_a_sliding_window_limits_the_length_of_texts(settings, positions):
    config = read(settings)
    assert config.max_positions == positions
    assert [str(positions) in note for note in config.notes] == [True] * (
        positions < settings["max_position_embeddings"])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor"),
        ({**LLAMA, "rope_scaling": {**LLAMA3_ROPE, "factor": "8"}}, "rope_scaling.factor"),
        ({**LLAMA, "rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4}}, "rope_scaling.high_freq_factor"),
        ({**LLAMA, "rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": 8e3}},
         "rope_scaling.original_max_position_embeddings"),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor"),
        ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({**LLAMA, "rope_scaling": "default"}, "rope_scaling"),
        ({**LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters.rope_type"),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
         "rope_parameters.partial_rotary_factor"),
        ({**LLAMA, "partial_rotary_factor": 0.25}, "partial_rotary_factor"),
        ({**QWEN2, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({**LLAMA, "attention_bias": "no"}, "attention_bias"),
        ({**LLAMA, "mlp_bias": None}, "mlp_bias"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window"),
        ({**QWEN2, "use_sliding_window": 1}, "use_sliding_window"),
        ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types"),
        ({**QWEN2, "layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({**QWEN3, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({**QWEN3, "head_dim": 7}, "head_dim"),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act"),
        ({**LLAMA, "num_key_value_heads": 4}, "num_key_value_heads"),
        ({**LLAMA, "num_attention_heads": 7, "num_key_value_heads": 7}, "hidden_size"),
        ({**LLAMA, "head_dim": 5}, "head_dim"),
        ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({**GPT2, "scale_attn_weights": "no"}, "scale_attn_weights"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": 1}, "scale_attn_by_inverse_layer_idx"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention"),
        ({**GPT2, "activation_function": "mish"}, "activation_function"),
        ({**GPT2, "activation_function": ["gelu"]}, "activation_function"),
        ({**GPT2, "n_embd": 25}, "n_embd"),
        ({**GPT2, "n_layer": -1}, "n_layer"),
        ({**GPT2, "n_layer": 10**9}, "n_layer"),
        ({**GPT2, "vocab_size": 10**9}, "vocab_size"),
        ({**GPT2, "n_head": 0}, "n_head"),
        ({**GPT2, "n_positions": True}, "n_positions"),
        ({**GPT2, "n_positions": "32"}, "n_positions"),
        ({**GPT2, "layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
        ({**GPT2, "layer_norm_epsilon": 0}, "layer_norm_epsilon"),
        ({**GPT2, "tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({**GPT2, "eos_token_id": "end"}, "eos_token_id"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(config, name):
    assert f"\n  {name}: expected " in problems(config)


def test_all_problems_come_in_one_error():
    text = problems({**GPT2, "n_layer": 0, "activation_function": "mish", "scale_attn_weights": 0})
    assert text.count(": expected ") == 3 and text.startswith("config.json: ")


@pytest.mark.parametrize("family", ["mixtral", None, 7, ["gpt2"]])
def test_other_architectures_are_refused_with_what_is_supported(family):
    text = problems({"model_type": family})
    assert "model_type" in text and all(f"{name} (" in text for name in FAMILIES)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu", "gelu_erf"), ("relu", "relu"),
     ("gelu_fast", "gelu_tanh"), ("gelu_accurate", "gelu_tanh"), ("gelu_python", "gelu_erf"), ("swish", "silu"),
     ("quick_gelu", "quick_gelu"), ("tanh", "tanh")],
)
def test_activations(name, meaning):
    assert read({**GPT2, "activation_function": name}).activation == meaning


@pytest.mark.parametrize(("value", "expected"), [([5, 6], 5), (None, None), (50256, None), (-1, None), (0, 0)])
def test_end_of_text_token(value, expected):
    assert read({**GPT2, "eos_token_id": value}).eos_token_id == expected


def test_inner_size():
    assert read(GPT2).intermediate_size == 96
    assert read({**GPT2, "n_inner": None}).intermediate_size == 96
    assert read({**GPT2, "n_inner": 50}).intermediate_size == 50


def test_sizes_by_the_names_transformers_also_accepts():
    renamed = {"model_type": "gpt2", "vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 2}
    renamed.update(num_attention_heads=3, max_position_embeddings=32)
    assert read(renamed) == read(GPT2)


WORDS = st.text("abyz", max_size=5)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    WORDS,
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(["rope_theta", "rope_type", "type", *LLAMA3_ROPE]),
                    WORDS | st.floats() | st.integers() | st.sampled_from(["linear", "llama3"])),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", "x"]), max_size=3),
)
OPTIONAL = ["rope_scaling", "rope_parameters", "rope_theta", "head_dim", "n_inner", "eos_token_id", "rms_norm_eps",
            "attention_bias", "sliding_window", "use_sliding_window", "layer_types", "max_window_layers",
            "partial_rotary_factor", "original_max_position_embeddings"]


@given(st.sampled_from([GPT2, LLAMA, MISTRAL, QWEN2, QWEN3]), st.data())
def test_any_value_of_a_key_is_read_or_refused(base, data):
    changed = data.draw(st.dictionaries(st.sampled_from([*base, *OPTIONAL]), VALUES))
    try:
        config = read({**base, **changed})
    except UserError:
        return
    assert all(size > 0 for shape in tensor_shapes(config).values() for size in shape)
