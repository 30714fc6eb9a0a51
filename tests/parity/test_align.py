"""`align` on small models: both sides agree, and an error planted in the PyTorch side is found where it is."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

import model_files
import small_run
from jittor_lora.alignment import twin
from jittor_lora.alignment.run import align
from jittor_lora.settings.align import AlignConfig

pytestmark = pytest.mark.parity

GPT2 = {**small_run.GPT2, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 256}
LLAMA = {**model_files.LLAMA, "hidden_size": 64, "num_hidden_layers": 3, "head_dim": 16, "intermediate_size": 96,
         "max_position_embeddings": 256, "bos_token_id": 299, "eos_token_id": 299}
SOURCES = {"gpt2": GPT2, "llama": LLAMA}
SETTINGS = {"steps": 50, "batch_size": 4, "learning_rate": 5e-3, "weight_decay": 0.01, "warmup_steps": 5,
            "max_grad_norm": 1.0, "lora_r": 4, "lora_alpha": 8.0, "eval_questions": 4, "held_out": 3, "threads": 1}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """A function: family → settings of an alignment, and what came of it."""

    @functools.lru_cache(maxsize=None)
    def of(family):
        config = settings(tmp_path_factory.mktemp(family), family)
        return config, align(config)

    return of


def settings(folder, family, **others):
    small_run.make_base(folder / "base", SOURCES[family])
    small_run.make_squad(folder / "train.json", 20)
    small_run.make_squad(folder / "dev.json", 4, first=20)
    return AlignConfig(base=str(folder / "base"), data=str(folder / "train.json"), dev=str(folder / "dev.json"),
                       output=str(folder / "out"), **{**SETTINGS, **others})


@pytest.mark.parametrize("family", SOURCES)
def test_fifty_steps_agree(aligned, family):
    config, found = aligned(family)
    print({check.key: check.found for check in found.checks})
    assert all(check.passed for check in found.checks if check.key != "answers")
    assert found.agrees and not found.answers
    assert len(found.steps[0]) == len(found.steps[1]) == 50
    losses = [step.loss for step in found.steps[0]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert max(step.grad_norm for step in found.steps[0]) > 1  # clipping has something to do
    assert [here.labels for here in found.steps[0]] == [there.labels for there in found.steps[1]]
    assert found.answered == 4 and found.scores[0].count == 4
    assert (Path(config.output) / "report.html").is_file()


# Other settings that both sides must understand alike, several at a time.
OPTIONS = {
    "loss": ("gpt2", {"prompt_loss_weight": 0.3, "label_smoothing": 0.1, "gradient_accumulation": 2,
                      "schedule": "cosine", "max_grad_norm": 0.0, "share_prefixes": False}),
    "DoRA": ("llama", {"lora_use_dora": True, "loraplus_lr_ratio": 4.0, "schedule": "constant",
                       "target_modules": "all-linear"}),
    "rsLoRA": ("llama", {"lora_use_rslora": True, "lora_init": "kaiming", "lora_rank_pattern": {"q_proj": 6},
                         "lora_alpha_pattern": {"v_proj": 3.0}, "adam_beta2": 0.99, "activation_checkpointing": True}),
    # Not in the attention: the keys' biases move no logit, and AdamW makes steps of what rounding leaves.
    "biases": ("gpt2", {"target_modules": ["mlp.c_proj"], "lora_bias": "lora_only", "lora_b_bias": True,
                        "modules_to_save": ["ln_f", "h.1.mlp.c_fc"]}),
    "embedding": ("gpt2", {"target_modules": ["c_attn", "wte"]}),
    # PEFT rounds what is left of W to float32.
    "PiSSA": ("llama", {"lora_init": "pissa", "tolerances": {"activations": 1e-3, "gradients": 1e-3}}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_other_settings_agree(tmp_path, option):
    family, others = OPTIONS[option]
    found = align(settings(tmp_path, family, steps=10, eval_questions=0, held_out=1, **others))
    print(*((check.key, check.passed, check.found, check.where, check.reason) for check in found.checks), sep="\n")
    assert found.agrees
    assert [here.labels for here in found.steps[0]] == [there.labels for there in found.steps[1]]


def after(place, line):
    """The shipped script with a line, or lines, after the one that ends with `place`."""
    return between(place, place + "\n" + line.lstrip("\n"))


def between(old, new):
    text = twin.script_text(None)
    assert text.count(old) == 1, old
    return text.replace(old, new)


GIVEN = '        attn_implementation=SETTINGS["attention"])'
LOADED = "                        for name, p in base.named_parameters()})"  # and their sums are written
ADAPTED = '    model = peft.PeftModel.from_pretrained(base, INPUTS / "adapter", is_trainable=True)'
CONFIGURED = '    config = transformers.AutoConfig.from_pretrained(HERE / SETTINGS["base"])'
ZERO_BIAS = """
    for name, p in base.named_parameters():
        if name.endswith("c_attn.bias"):
            p.data.zero_()"""
TRANSPOSED = """
    for name, p in model.named_parameters():
        if ".lora_A." in name:
            p.data = p.data.reshape(p.shape[::-1]).T.contiguous()"""
DOUBLED = """
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 2"""
LOOK_AHEAD = """
    def attention(q, k, v, **others):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(1)
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen, -math.inf).softmax(-1) @ v
    torch.nn.functional.scaled_dot_product_attention = attention"""
RATE_OF_NEXT = "        scheduler.step()\n        optimizer.step()"

# (what is wrong, the script, families, and what is found first: the check, where, and why)
ERRORS = [
    ("no bias in the file", after(GIVEN, ZERO_BIAS), "gpt2", "base", "h.0.attn.c_attn.bias", "zeros_there"),
    ("no bias in the network", after(LOADED, ZERO_BIAS), "gpt2", "activations", "h.0.attn.c_attn", "inside_linear"),
    ("erf GELU", after(CONFIGURED, '    config.activation_function = "gelu"'), "gpt2", "activations",
     "h.0.mlp.c_proj", "between_activation"),
    ("epsilon of norms", after(CONFIGURED, "    config.rms_norm_eps = 1e-2"), "llama", "activations",
     "layers.0.input_layernorm", "inside_norm"),
    ("sees the next token", after(LOADED, LOOK_AHEAD), "gpt2 llama", "activations", ".0.", "attention"),
    ("theta of rotary positions", after(CONFIGURED, '    config.rope_parameters["rope_theta"] = 500.0'), "llama",
     "activations", "layers.0.self_attn.o_proj", "between_rotary_attention"),
    ("A transposed", after(ADAPTED, TRANSPOSED), "gpt2 llama", "initial_adapter", "lora_A", "transposed"),
    ("A drawn anew", after(ADAPTED, """
    for name, p in model.named_parameters():
        if ".lora_A." in name:
            torch.nn.init.normal_(p)"""), "llama", "initial_adapter", "lora_A", "adapter_values"),
    ("alpha doubled", after(ADAPTED, DOUBLED), "gpt2 llama", "gradients", "", "gradient_factor"),
    ("padding scored", between("torch.full_like(tokens, IGNORED)", 'torch.full_like(tokens, SETTINGS["pad_id"])'),
     "gpt2 llama", "loss", "1", "more_labels"),
    ("prompt scored", between("torch.where(weight > 0, ids, IGNORED)", "ids"), "gpt2", "loss", "1", "all_labels"),
    ("end of text not learnt", after("        weights[row, : len(ids)] = weight",
                                     "        labels[row, len(ids) - 1] = IGNORED"), "llama", "loss", "1",
     "fewer_labels"),
    ("labels not shifted", between("labels[:, 1:].flatten()", "labels[:, :-1].flatten()"), "gpt2", "loss", "",
     "loss_of_example"),
    ("no warm-up", between('SETTINGS["warmup_steps"], len(steps)', "0, len(steps)"), "llama", "learning_rate", "1",
     "schedule"),
    ("rate of the next step", between("        optimizer.step()\n        scheduler.step()", RATE_OF_NEXT), "gpt2",
     "losses", "2", "first_step"),
    ("no clipping", between('SETTINGS["max_grad_norm"] or math.inf', "math.inf"), "gpt2 llama", "losses", "",
     "second_update"),
    ("no weight decay", between('"weight_decay": SETTINGS["weight_decay"]', '"weight_decay": 0.0'), "gpt2 llama",
     "first_update", "", "weight_decay"),
    ("epsilon of AdamW", between('"eps": SETTINGS["epsilon"]', '"eps": 1e-3'), "llama", "first_update", "", "epsilon"),
    ("betas of AdamW", between('"betas": SETTINGS["betas"]', '"betas": (0.9, 0.9)'), "llama", "losses", "3",
     "second_update"),
    ("gradients not cleared", between("        optimizer.zero_grad()\n", ""), "llama", "losses", "3", "second_update"),
    ("the base's own dropout", between('DROPOUTS = ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout")',
                                       "DROPOUTS = ()"), "gpt2", "loss", "1", "loss_of_step"),
]


@pytest.mark.parametrize("family, text, key, where, why", [
    pytest.param(family, text, *expected, id=f"{family}: {error}")
    for error, text, families, *expected in ERRORS for family in families.split()])
def test_planted_errors_are_found(aligned, tmp_path, family, text, key, where, why):
    config, _ = aligned(family)
    (tmp_path / "changed.py").write_text(text)
    found = align(config, tmp_path / "changed.py")
    print(*((check.key, check.found, check.where, check.reason, dict(check.values))
            for check in found.checks if check.passed is False), sep="\n")
    first = found.first_failure
    assert not found.agrees
    assert first.key == key and where in first.where and why in first.reason
    assert found.facts[1].framework == "PyTorch"  # it ran to its end


def test_what_does_not_matter_is_no_difference(aligned, tmp_path):
    """With padding on the right, no token sees any of it: the attention mask is not needed."""
    config, _ = aligned("gpt2")
    (tmp_path / "changed.py").write_text(between("attention_mask=mask", "attention_mask=None"))
    assert align(config, tmp_path / "changed.py").agrees
