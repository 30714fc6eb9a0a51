"""The same module in Jittor and in PyTorch, with the same weights."""

from __future__ import annotations

import numpy as np
import torch

from jittor_lora.system.runtime import jt

J, T = jt.nn, torch.nn


def copied(ours: jt.Module, theirs: T.Module) -> None:
    """Give both the same weights, random, by their names, which are the same."""
    draw = np.random.Generator(np.random.Philox(1))
    arrays = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        value = (draw.standard_normal(tuple(parameter.shape)) * 0.3).astype(np.float32)
        parameter.data = torch.from_numpy(value)
        arrays[name].assign(jt.array(value))


class OurText(J.Module):
    """Embedding, convolution, batch norm, attention, linear layers in a Sequential and in a list."""

    def __init__(self):
        self.embed = J.Embedding(11, 8)
        self.convolve = J.Conv1d(8, 8, 3, padding=1)
        self.norm = J.BatchNorm1d(8)
        self.attention = jt.attention.MultiheadAttention(8, 2)
        self.body = J.Sequential(J.Linear(8, 6), J.ReLU(), J.Linear(6, 8))
        self.head = J.Linear(8, 5)

    def execute(self, ids):
        x = self.embed(ids)
        x = self.norm(self.convolve(x.transpose(0, 2, 1))).transpose(0, 2, 1)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.body(x))


class TheirText(T.Module):
    def __init__(self):
        super().__init__()
        self.embed = T.Embedding(11, 8)
        self.convolve = T.Conv1d(8, 8, 3, padding=1)
        self.norm = T.BatchNorm1d(8)
        self.attention = T.MultiheadAttention(8, 2)
        self.body = T.Sequential(T.Linear(8, 6), T.ReLU(), T.Linear(6, 8))
        self.head = T.Linear(8, 5)

    def forward(self, ids):
        x = self.embed(ids)
        x = self.norm(self.convolve(x.transpose(1, 2))).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.body(x))


class OurImage(J.Module):
    """Convolutions with stride, groups and padding, and a residual block."""

    def __init__(self):
        self.stem = J.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = J.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.point = J.Conv2d(8, 6, 1)
        self.head = J.Linear(6, 4)

    def execute(self, x):
        x = J.relu(self.stem(x))
        x = self.point(x + self.grouped(x))
        return self.head(x.mean(-1).mean(-1))


class TheirImage(T.Module):
    def __init__(self):
        super().__init__()
        self.stem = T.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = T.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.point = T.Conv2d(8, 6, 1)
        self.head = T.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.point(x + self.grouped(x))
        return self.head(x.mean(-1).mean(-1))


PAIRS = {"text": (OurText, TheirText), "image": (OurImage, TheirImage)}


def pair(kind: str):
    """Ours and theirs, with the same weights, in evaluation mode."""
    ours, theirs = PAIRS[kind][0](), PAIRS[kind][1]()
    copied(ours, theirs)
    return ours, theirs


def inputs(kind: str):
    """A batch for either, as a numpy array."""
    draw = np.random.Generator(np.random.Philox(2))
    if kind == "text":
        return draw.integers(0, 11, (4, 7)).astype(np.int32)
    return draw.standard_normal((5, 3, 8, 8)).astype(np.float32)
