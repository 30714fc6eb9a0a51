"""litgpt on a small base, in a process of its own: what it computes with an adapter, and adapters that it trains.

    python litgpt_peer.py logits BASE ADAPTER TOKENS.npy LOGITS.npy
    python litgpt_peer.py train BASE ADAPTER RANK ALPHA lora_query,lora_value,…
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable, merge_lora_weights
from litgpt.scripts import convert_hf_checkpoint
from safetensors.torch import load_file

torch.set_num_threads(1)


def network(base: str, lora: dict) -> GPT:
    """The base of a Hugging Face folder, converted by litgpt."""
    source = json.loads((Path(base) / "config.json").read_text())
    config = Config(
        name="base", n_layer=source["num_hidden_layers"], n_embd=source["hidden_size"], bias=False,
        vocab_size=source["vocab_size"], padded_vocab_size=source["vocab_size"], n_head=source["num_attention_heads"],
        n_query_groups=source["num_key_value_heads"], head_size=source["head_dim"], rotary_percentage=1.0,
        parallel_residual=False, norm_class_name="RMSNorm", norm_eps=source["rms_norm_eps"],
        rope_base=int(source["rope_theta"]), mlp_class_name="LLaMAMLP", intermediate_size=source["intermediate_size"],
        block_size=source["max_position_embeddings"],
        **({"attn_bias": True} if source["model_type"] == "qwen2" else {}), **lora)
    state: dict = {}
    weights = load_file(Path(base) / "model.safetensors")
    if source["model_type"] == "qwen2":
        convert_hf_checkpoint.copy_weights_qwen_2_5(config, {}, state, weights)
    else:
        convert_hf_checkpoint.copy_weights_hf_llama(config, {}, state, weights)
    model = GPT(config)
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and all("lora_" in name for name in left.missing_keys), left
    return model


def logits(base: str, adapter: str, tokens: str, output: str) -> None:
    """As `litgpt merge_lora` reads the folder, merged and not."""
    values = yaml.safe_load((Path(adapter) / "hyperparameters.yaml").read_text())
    model = network(base, {name: value for name, value in values.items() if name.startswith("lora_")})
    state = torch.load(Path(adapter) / "lit_model.pth.lora", mmap=True, weights_only=True)["model"]
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and not any("lora_" in name for name in left.missing_keys), left
    ids = torch.from_numpy(np.load(tokens)).long()[None]
    with torch.no_grad():
        found = model.eval()(ids)[0]
        merge_lora_weights(model)
        torch.testing.assert_close(model(ids)[0], found, atol=1e-4, rtol=1e-4)
    np.save(output, found.numpy())


def train(base: str, adapter: str, rank: str, alpha: str, switches: str) -> None:
    """A few steps, saved as litgpt's finetune/lora.py does."""
    lora = {"lora_r": int(rank), "lora_alpha": int(alpha), "lora_dropout": 0.0,
            **dict.fromkeys(switches.split(","), True)}
    torch.manual_seed(0)
    model = network(base, lora)
    mark_only_lora_as_trainable(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    ids = torch.randint(0, model.config.vocab_size, (4, 20))
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    Path(adapter).mkdir(parents=True)
    state = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    torch.save({"model": state}, Path(adapter) / "lit_model.pth.lora")
    others = ("lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp", "lora_head")
    values = {"checkpoint_dir": "checkpoints/some/base", "precision": None, "devices": 1,
              **{name: lora.get(name, False) for name in others}, **lora, "data": {"class_path": "litgpt.data.Alpaca"}}
    (Path(adapter) / "hyperparameters.yaml").write_text(yaml.safe_dump(values))


if __name__ == "__main__":
    {"logits": logits, "train": train}[sys.argv[1]](*sys.argv[2:])
