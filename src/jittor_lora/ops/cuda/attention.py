"""Attention: the fused kernels, or the definition for what they do not compute."""

from __future__ import annotations

from types import ModuleType

from jittor_lora.ops import fused, portable
from jittor_lora.ops.plan import AttentionPlan

LARGEST_HEAD = 256  # as in kernels/attention.cuh


def attention(q, k, v, plan: AttentionPlan, scale: float | None = None):
    return _implementation(q.shape[2], scale).attention(q, k, v, plan, scale)


def fused_attention(qkv, heads: int, plan: AttentionPlan, rows=None, scale: float | None = None):
    return _implementation(qkv.shape[1] // 3 // heads, scale).fused_attention(qkv, heads, plan, rows, scale)


def _implementation(head_dim: int, scale: float | None) -> ModuleType:
    return fused if head_dim <= LARGEST_HEAD and portable.score_scale(scale, head_dim) > 0 else portable
