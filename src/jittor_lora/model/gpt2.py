"""GPT-2 (Radford et al. 2019) on a token stream, with the module names of its checkpoints."""

from __future__ import annotations

from typing import Mapping

import numpy as np

from jittor_lora import ops
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.forward_pass import Pass
from jittor_lora.model.modules import Linear, Weights
from jittor_lora.model.rows import ALL_ALIKE, Rows
from jittor_lora.system.runtime import jt

ACTIVATIONS = {"gelu_tanh": ops.gelu_tanh, "gelu_erf": ops.gelu_erf, "silu": ops.silu, "relu": ops.relu,
               "quick_gelu": ops.quick_gelu, "tanh": ops.tanh}


class LayerNorm(jt.Module):
    def __init__(self, weights: Weights, eps: float):
        super().__init__()
        self.weight, self.bias, self.eps = weights["weight"], weights["bias"], eps

    def execute(self, x, rows: Rows = ALL_ALIKE):
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(jt.Module):
    def __init__(self, weights: Weights, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.heads, self.scale = layer, config.heads, config.attention_scale(layer)
        self.c_attn = weights.conv1d("c_attn")
        self.c_proj = weights.conv1d("c_proj")

    def execute(self, x, run: Pass):
        qkv = self.c_attn(x, run.rows)  # (N, D) → (N, 3 D)
        return self.c_proj(run.attend_fused(self.layer, qkv, self.heads, self.scale), run.wanted_rows)  # → (M, D)


class FeedForward(jt.Module):
    def __init__(self, weights: Weights, config: ModelConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = weights.conv1d("c_fc")
        self.c_proj = weights.conv1d("c_proj")

    def execute(self, x, rows: Rows):
        return self.c_proj(self.activation(self.c_fc(x, rows)), rows)  # (M, D) → (M, F) → (M, D)


class Block(jt.Module):
    def __init__(self, weights: Weights, config: ModelConfig, layer: int):
        super().__init__()
        self.ln_1 = LayerNorm(weights.at("ln_1"), config.norm_eps)
        self.attn = Attention(weights.at("attn"), config, layer)
        self.ln_2 = LayerNorm(weights.at("ln_2"), config.norm_eps)
        self.mlp = FeedForward(weights.at("mlp"), config)

    def execute(self, x, run: Pass):
        x, into = ops.shared(x, 2)
        x = ops.add(run.wanted(x), self.attn(self.ln_1(into, run.rows), run))
        x, into = ops.shared(x, 2)
        return ops.add(x, self.mlp(self.ln_2(into, run.wanted_rows), run.wanted_rows))


class GPT2Model(jt.Module):
    def __init__(self, weights: Weights, config: ModelConfig):
        super().__init__()
        self.wte = weights.embedding("wte")  # (V, D)
        self.wpe = weights.embedding("wpe")  # (positions, D)
        self.h = [Block(weights.at(f"h.{layer}"), config, layer) for layer in range(config.layers)]
        self.ln_f = LayerNorm(weights.at("ln_f"), config.norm_eps)


class GPT2LMHeadModel(CausalLM):
    """GPT-2 with its output head, which is the token embedding unless the checkpoint has a separate one.

    Args:
        config: of family "gpt2".
        tensors: the checkpoint's tensors by canonical name.
        precision: of matrix products with the weights, see `Matrix`.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: str = "fp32"):
        super().__init__(config, precision)
        weights = Weights(tensors, precision)
        self.transformer = GPT2Model(weights.at("transformer"), config)
        self.lm_head = Linear(self.transformer.wte.weight) if config.tied_head else weights.linear("lm_head")

    def _states(self, tokens: np.ndarray, run: Pass, last: Pass):
        x = ops.add(self.transformer.wte(tokens, run.rows), self.transformer.wpe(run.positions, run.rows))
        *blocks, last_block = self.transformer.h
        for block in blocks:
            x = self.through(block, x, run)
        x = self.through(last_block, x, last)
        return self.transformer.ln_f(x, last.wanted_rows)
