"""`align` on small models: both sides agree, and an error planted in the PyTorch side is found where it is."""

from __future__ import annotations

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


@pytest.fixture(scope="module", params=SOURCES)
def aligned(request, tmp_path_factory):
    """Settings of an alignment, and what came of it."""
    return prepared(tmp_path_factory.mktemp("align"), request.param)


def prepared(folder, family, **settings):
    small_run.make_base(folder / "base", SOURCES[family])
    small_run.make_squad(folder / "train.json", 20)
    small_run.make_squad(folder / "dev.json", 4, first=20)
    config = AlignConfig(base=str(folder / "base"), data=str(folder / "train.json"), dev=str(folder / "dev.json"),
                         output=str(folder / "out"), **{**SETTINGS, **settings})
    return family, config, align(config)


def test_fifty_steps_agree(aligned):
    _, config, found = aligned
    print({check.key: check.found for check in found.checks})
    assert found.agrees
    assert all(check.passed for check in found.checks if check.key != "answers")
    assert len(found.steps[0]) == len(found.steps[1]) == 50
    losses = [step.loss for step in found.steps[0]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert max(step.grad_norm for step in found.steps[0]) > 1  # clipping has something to do
    assert found.answered == 4 and found.scores[0].count == 4
    assert found.facts[0].framework == "jittor-lora" and found.facts[1].framework == "PyTorch"


def after(place, line):
    """The shipped script with a line, or lines, after the one that ends with `place`."""
    return between(place, f"{place}\n{line}")


def between(old, new):
    text = twin.script_text(None)
    assert text.count(old) == 1, old
    return text.replace(old, new)


LOADED = '                        for name, p in base.named_parameters()})'  # and its sums are written
GIVEN = '        HERE / SETTINGS["base"], config=config, dtype=torch.float32, attn_implementation=SETTINGS["attention"])'
ADAPTED = '    model = peft.PeftModel.from_pretrained(base, INPUTS / "adapter", is_trainable=True)'
CONFIGURED = '    config = transformers.AutoConfig.from_pretrained(HERE / SETTINGS["base"])'
ZERO_BIAS = '''    for name, p in base.named_parameters():
        if name.endswith("c_attn.bias"):
            p.data.zero_()'''
TRANSPOSED = '''    for name, p in model.named_parameters():
        if ".lora_A." in name:
            p.data = p.data.reshape(p.shape[::-1]).T.contiguous()'''
DOUBLED = '''    for module in model.modules():
        if hasattr(module, "scaling"):
            module.scaling["default"] *= 2'''
LOOK_AHEAD = '''    def attention(q, k, v, attn_mask=None, **others):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(1)
        scores = q @ k.transpose(-1, -2) * others.get("scale", q.shape[-1] ** -0.5)
        return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v
    torch.nn.functional.scaled_dot_product_attention = attention'''

# Name → families, the script, the first check that fails, a part of where, the reason.
PLANTED = {
    "no bias of c_attn in the file": ("gpt2", after(GIVEN, ZERO_BIAS), "base", "h.0.attn.c_attn.bias", "zeros_there"),
    "no bias of c_attn": ("gpt2", after(LOADED, ZERO_BIAS), "activations", "h.0.attn.c_attn", None),
    "erf GELU": ("gpt2", after(CONFIGURED, '    config.activation_function = "gelu"'), "activations", "h.0.mlp.c_", None),
    "padding scored": ("gpt2 llama", between("torch.full_like(tokens, IGNORED)", 'torch.full_like(tokens, SETTINGS["pad_id"])'),
                       "gradients", "", None),
    "A transposed": ("gpt2 llama", after(ADAPTED, TRANSPOSED), "initial_adapter", "lora_A", "transposed"),
    "alpha doubled": ("gpt2 llama", after(ADAPTED, DOUBLED), "gradients", "", "gradient_factor"),
    "sees the next token": ("gpt2 llama", after(LOADED, LOOK_AHEAD), "activations", ".0.", None),
    "theta of rotary positions": ("llama", after(CONFIGURED, '    config.rope_parameters["rope_theta"] = 500.0'),
                                  "activations", "layers.0.self_attn", None),
    "no warm-up": ("llama", between('SETTINGS["warmup_steps"], len(steps)', '0, len(steps)'), "learning_rate", "1", None),
    "rate of the next step": ("gpt2", between("        optimizer.step()\n        scheduler.step()",
                                              "        scheduler.step()\n        optimizer.step()"), None, "", None),
    "no clipping": ("gpt2 llama", between('SETTINGS["max_grad_norm"] or math.inf', "math.inf"), "losses", "", None),
    "no weight decay": ("llama", between('"weight_decay": SETTINGS["weight_decay"]', '"weight_decay": 0.0'),
                        "first_update", "", "weight_decay"),
}


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_are_found(aligned, tmp_path, error):
    family, config, _ = aligned
    families, text, key, where, reason = PLANTED[error]
    if family not in families:
        pytest.skip(f"not an error of {family}")
    script = tmp_path / "changed.py"
    script.write_text(text)
    found = align(config, script)
    failed = [(check.key, check.found, check.where, check.reason, dict(check.values))
              for check in found.checks if check.passed is False]
    print(*failed, sep="\n")
    first = found.first_failure
    assert not found.agrees
    assert key is None or first.key == key
    assert where in first.where
    assert reason is None or first.reason == reason
