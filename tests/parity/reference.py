"""The same models, adapters and losses in torch: transformers, PEFT, padded batches of separate examples."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import peft
import torch
import transformers

from jittor_lora.data.groups import TokenGroup
from jittor_lora.formats.peft import peft_name
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig

torch.set_num_threads(1)


def network(source: dict, tensors: dict[str, np.ndarray]) -> torch.nn.Module:
    """transformers' model of this config.json with these weights, in float32, without dropout."""
    config = transformers.AutoConfig.for_model(**source)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    model.tie_weights()
    return model.float().eval()


def logits(model: torch.nn.Module, tokens: Sequence[int]) -> np.ndarray:
    """(T, V) of one text."""
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens, np.int64)[None])).logits[0].numpy()


def adapted(model: torch.nn.Module, config: LoraConfig, arrays: dict[str, np.ndarray] | None = None) -> peft.PeftModel:
    """The model with a PEFT adapter of the same settings, and these values ("<module>.lora_A", …) if given."""
    family = model.config.model_type
    targets = config.target_modules
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=family == "gpt2", init_lora_weights="gaussian" if config.init == "gaussian" else True)
    wrapped = peft.get_peft_model(model, settings)
    if arrays is not None:
        state = {peft_name(name): torch.from_numpy(array.copy()) for name, array in arrays.items()}
        result = peft.set_peft_model_state_dict(wrapped, state)
        assert not result.unexpected_keys
        assert not [key for key in result.missing_keys if "lora_" in key]
    return wrapped


def default_lora(family: str, **settings) -> LoraConfig:
    return LoraConfig(**{"r": 4, "alpha": 8.0, "target_modules": DEFAULT_TARGETS[family], **settings})


def parameter_names(model: peft.PeftModel) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by our names."""
    return {name.replace("base_model.model.", "", 1).replace(".default.weight", ""): p
            for name, p in model.named_parameters() if p.requires_grad}


def padded(groups: Sequence[TokenGroup], prompt_loss_weight: float = 0.0, pad: int = 0):
    """Every example whole, padded on the right: tokens, mask and the weight of each token as a label, (B, T)."""
    rows = [(g.prefix + b.prompt, b.completion) for g in groups for b in g.branches]
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    tokens = np.full((len(rows), longest), pad, np.int64)
    mask, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
    for i, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        tokens[i, :length] = prompt + completion
        mask[i, :length] = 1
        weights[i, 1 : len(prompt)] = prompt_loss_weight
        weights[i, len(prompt) : length] = 1.0
    return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(weights)


def loss(model: torch.nn.Module, groups: Sequence[TokenGroup], prompt_loss_weight: float = 0.0,
         smoothing: float = 0.0) -> torch.Tensor:
    """The weighted mean loss a label, in nats."""
    tokens, mask, weights = padded(groups, prompt_loss_weight)
    out = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(out.transpose(1, 2), tokens[:, 1:], reduction="none",
                                            label_smoothing=smoothing)
    return (nll * weights[:, 1:]).sum() / weights[:, 1:].sum()
