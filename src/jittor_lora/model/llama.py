"""The network of Llama (Touvron et al. 2023), Mistral, Qwen2 and Qwen3 on a token stream, with the module names of
their checkpoints."""

from __future__ import annotations

from typing import Mapping

import numpy as np

from jittor_lora import ops
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.forward_pass import Pass
from jittor_lora.model.modules import Linear, Weights
from jittor_lora.model.rotary import frequencies
from jittor_lora.model.rows import ALL_ALIKE, Rows
from jittor_lora.system.runtime import jt


class RMSNorm(jt.Module):
    def __init__(self, weight, eps: float):
        super().__init__()
        self.weight, self.eps = weight, eps

    def execute(self, x, rows: Rows = ALL_ALIKE):
        return ops.rms_norm(x, self.weight, self.eps)


class HeadNorm(RMSNorm):
    """RMS norm of each head of x (N, H, d), with one weight (d,) for all."""

    def execute(self, x, rows: Rows = ALL_ALIKE):
        return super().execute(x.reshape((-1, x.shape[2]))).reshape(x.shape)


class Attention(jt.Module):
    def __init__(self, weights: Weights, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.config = layer, config
        self.q_proj = weights.linear("q_proj")
        self.k_proj = weights.linear("k_proj")
        self.v_proj = weights.linear("v_proj")
        self.o_proj = weights.linear("o_proj")
        if config.qk_norm:
            self.q_norm = HeadNorm(weights["q_norm.weight"], config.norm_eps)
            self.k_norm = HeadNorm(weights["k_norm.weight"], config.norm_eps)

    def execute(self, x, run: Pass, rotation):
        n, c = x.shape[0], self.config
        first, second, for_v = ops.shared(x, 3)
        # In the order in which Jittor would sum their gradients: last the one that comes last in the backward pass.
        for_q, for_k = (first, second) if run.is_partial else (second, first)
        q = self.q_proj(run.wanted(for_q), run.wanted_rows)
        q = q.reshape((q.shape[0], c.heads, c.head_dim))
        k = self.k_proj(for_k, run.rows).reshape((n, c.kv_heads, c.head_dim))
        if c.qk_norm:
            q, k = self.q_norm(q, run.wanted_rows), self.k_norm(k, run.rows)
        q, k = ops.rotary(q, *map(run.wanted, rotation)), ops.rotary(k, *rotation)
        v = self.v_proj(for_v, run.rows).reshape((n, c.kv_heads, c.head_dim))
        return self.o_proj(run.attend(self.layer, q, k, v), run.wanted_rows)


class FeedForward(jt.Module):
    def __init__(self, weights: Weights):
        super().__init__()
        self.gate_proj = weights.linear("gate_proj")
        self.up_proj = weights.linear("up_proj")
        self.down_proj = weights.linear("down_proj")

    def execute(self, x, rows: Rows):
        for_gate, for_up = ops.shared(x, 2)
        gated = ops.swiglu(self.gate_proj(for_gate, rows), self.up_proj(for_up, rows))  # (M, D) → (M, F)
        return self.down_proj(gated, rows)


class Block(jt.Module):
    def __init__(self, weights: Weights, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(weights["input_layernorm.weight"], config.norm_eps)
        self.self_attn = Attention(weights.at("self_attn"), config, layer)
        self.post_attention_layernorm = RMSNorm(weights["post_attention_layernorm.weight"], config.norm_eps)
        self.mlp = FeedForward(weights.at("mlp"))

    def execute(self, x, run: Pass, rotation):
        x, into = ops.shared(x, 2)
        x = ops.add(run.wanted(x), self.self_attn(self.input_layernorm(into, run.rows), run, rotation))
        x, into = ops.shared(x, 2)
        return ops.add(x, self.mlp(self.post_attention_layernorm(into, run.wanted_rows), run.wanted_rows))


class LlamaModel(jt.Module):
    def __init__(self, weights: Weights, config: ModelConfig):
        super().__init__()
        self.embed_tokens = weights.embedding("embed_tokens")  # (V, D)
        self.layers = [Block(weights.at(f"layers.{layer}"), config, layer) for layer in range(config.layers)]
        self.norm = RMSNorm(weights["norm.weight"], config.norm_eps)


class LlamaForCausalLM(CausalLM):
    """Such a network with its output head, which is the token embedding if the checkpoint ties them.

    Args:
        config: of a family on the network "llama".
        tensors: the checkpoint's tensors by canonical name.
        precision: of matrix products with the weights, see `Matrix`.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: str = "fp32"):
        super().__init__(config, precision)
        weights = Weights(tensors, precision)
        self._frequencies = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.model = LlamaModel(weights.at("model"), config)
        self.lm_head = Linear(self.model.embed_tokens.weight) if config.tied_head else weights.linear("lm_head")

    def _states(self, tokens: np.ndarray, run: Pass, last: Pass):
        rotation = ops.rotary_tables(run.positions, self._frequencies)
        x = self.model.embed_tokens(tokens, run.rows)
        *blocks, last_block = self.model.layers
        for block in blocks:
            x = self.through(block, x, run, rotation)
        x = self.through(last_block, x, last, rotation)
        return self.model.norm(x, last.wanted_rows)
