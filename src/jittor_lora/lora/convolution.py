"""Convolutions of any Jittor module with low-rank updates beside their frozen kernels."""

from __future__ import annotations

import math
from typing import Iterator, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.init import initial_pair
from jittor_lora.lora.layer import LoraLayer, Update
from jittor_lora.lora.layers import AdaptedLayer
from jittor_lora.ops import frozen
from jittor_lora.system.runtime import jt


def convolve(layer: jt.Module, x, weight, bias=None, groups: int | None = None):
    """x (N, C, …) convolved with another kernel, with the layer's stride, padding and dilation.

    Args:
        weight: (out, C / groups, …). bias: (out,) or None.
        groups: by default the layer's.
    """
    steps = layer.stride, layer.padding, layer.dilation
    return _convolution(layer, x, weight, bias, *steps, layer.groups if groups is None else groups)


def _convolution(layer: jt.Module, x, weight, *how):
    """A convolution in as many dimensions as the layer's."""
    if isinstance(layer, jt.nn.Conv1d):  # a two-dimensional one of width 1, as Jittor computes it
        return jt.nn.conv2d(x.unsqueeze(-1), weight.unsqueeze(-1), *how).squeeze(-1)
    return (jt.nn.conv3d if isinstance(layer, jt.nn.Conv3d) else jt.nn.conv2d)(x, weight, *how)


class ConvolutionUpdate(Update):
    """What one adapter adds to one convolution: scaling · B ∗ (A ∗ dropout(x)), where A has the layer's kernel size,
    stride, padding and dilation, and B is a 1 × 1 convolution in the layer's groups, as in PEFT.

    Without groups that is a convolution with the kernel scaling · B A, of which rows are outputs, so that what
    `Update` says of matrices (out, in) holds for kernels (out, C · k …).

    Attributes:
        lora_A: (r, C, …), trained.
        lora_B: (out, r / groups, 1 …), trained.
        magnitude: (1, out, 1 …), trained, with DoRA; else None.
    """

    def __init__(self, base: jt.Module, *args):
        super().__init__(base, *args)
        self.layer = [base]  # in a list, so that Jittor does not take it for a part of this module

    @staticmethod
    def shapes(base: jt.Module, config: LoraConfig, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the trained arrays but the bias, by their names in `trained`."""
        (rows, _, *kernel), rank = base.weight.shape, config.rank_of(name)
        ones = (1,) * len(kernel)
        shapes = {"lora_A": (rank, base.in_channels, *kernel), "lora_B": (rows, rank // base.groups, *ones)}
        if config.use_dora:
            shapes["lora_magnitude_vector"] = (1, rows, *ones)
        if config.lora_bias:
            shapes["lora_B_bias"] = (rows,)
        return shapes

    @staticmethod
    def refusals(base: jt.Module, config: LoraConfig, name: str) -> Iterator[str]:
        """What the settings ask for that a convolution cannot do."""
        if config.changes_base:
            yield f"init: {config.init} is for linear layers, and {name} is a convolution."
        if config.rank_of(name) % base.groups:
            yield (f"r: {name} has {base.groups} groups, which must divide its rank, found {config.rank_of(name)}. "
                   "Give it another one with rank_pattern, or leave it out with exclude_modules.")
        if config.use_dora and base.groups > 1:
            yield f"use_dora: not defined for {name}, which has {base.groups} groups."

    def _initial_pair(self, base: jt.Module, config: LoraConfig, name: str, seed: int):
        shapes = self.shapes(base, config, name)
        rank, *inputs = shapes["lora_A"]
        a, _ = initial_pair(config, name, seed, (base.out_channels, math.prod(inputs)), lambda: base.weight.numpy())
        return a.reshape(shapes["lora_A"]), np.zeros(shapes["lora_B"], np.float32)

    @staticmethod
    def _row_norms(weight: np.ndarray) -> np.ndarray:
        ones = (1,) * (weight.ndim - 2)
        return np.linalg.norm(weight.reshape(len(weight), -1), axis=1).reshape(1, -1, *ones)

    def _through(self, x, weight):
        return convolve(self.layer[0], x, weight)

    def _low_rank(self, x, mask_start: int | None):
        layer = self.layer[0]
        seen = self._dropped(x, mask_start) if self._drops and mask_start is not None else x
        projected = convolve(layer, seen, self.lora_A, groups=1)
        return self.scaling * _convolution(layer, projected, self.lora_B, None, 1, 0, 1, layer.groups)

    def _scale(self, weight):
        a, b = (array.detach().reshape((array.shape[0], -1)) for array in (self.lora_A, self.lora_B))
        changed = weight.reshape((weight.shape[0], -1)) + self.scaling * jt.matmul(b, a)
        norms = jt.sqrt((changed * changed).sum(1)).reshape(self.magnitude.shape)
        return self.magnitude / norms.detach()

    def _dropped(self, x, mask_start):
        mask = ops.dropout_mask(x.shape[0], math.prod(x.shape[1:]), self.dropout, self.dropout_seed, mask_start)
        return x * mask.reshape(x.shape)

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """A (r, C · k …) and scaling · B (out, r), without groups."""
        a, b = (array.numpy().reshape(array.shape[0], -1) for array in (self.lora_A, self.lora_B))
        return a, b * np.float32(self.scaling)

    def merged(self, weight: np.ndarray, base: np.ndarray) -> np.ndarray:
        """`weight` (out, C, …) with this update merged in. base: the frozen kernel, whose row norms DoRA uses."""
        rows = len(weight)
        magnitude = self.magnitude
        return self._merged_rows(weight.reshape(rows, -1), base.reshape(rows, -1),
                                 None if magnitude is None else magnitude.numpy().reshape(-1)).reshape(weight.shape)


class Convolution(AdaptedLayer, LoraLayer):
    """`jt.nn.Conv1d`, `Conv2d` or `Conv3d` with the updates of the active adapters."""

    def run(self, x, names: Sequence[str], mask_start: int = 0):
        if self.is_plain(names) and self.module(names) is self.base:
            return self.base(x)
        kernel, bias, updates = self._parts(names)
        y = convolve(self.base, x, kernel)
        for update in updates:
            y = update.apply_to_output(y, x, kernel, mask_start)
        return y if bias is None else y + bias.reshape((1, -1, *(1,) * (len(y.shape) - 2)))

    def as_matrix(self, array: np.ndarray):
        return frozen(array)

    def merge_problem(self) -> str | None:
        if self.base.groups > 1 and self.updates(self.active.names):
            return (f"{self.name}: a convolution in {self.base.groups} groups, whose update sees the channels of all "
                    "groups, so that no kernel in groups expresses it")
        return None
