"""Which implementation an operation runs on: that of the device's backend, else its definition in `portable`.

A backend is a folder beside this file. Its module `backend` offers

- `works()`: can it be used on this machine? Asked once.
- `precisions()`: "fp32", and those of `PRECISIONS` whose products it speeds up.
- `OPERATIONS`: operation → implementation, for those that it has. An implementation takes the arguments of the
  definition and calls it where it has no kernel for them. Most are those of `fused`.
- `KERNELS`: what `fused` runs on.
"""

from __future__ import annotations

import functools
import importlib
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple

from jittor_lora.ops import portable
from jittor_lora.system.runtime import jt

if TYPE_CHECKING:
    from jittor_lora.ops.matrix import Matrix
    from jittor_lora.ops.plan import AttentionPlan

BACKENDS = {device: f"jittor_lora.ops.{device}.backend" for device in ("cpu", "cuda")}  # device → module

# Operations by group; `portable_operations` switches groups.
OPERATIONS = {
    "linear": ("linear", "lora_linear"),
    "attention": ("attention", "fused_attention"),
    "norms": ("layer_norm", "rms_norm"),
    "activations": ("gelu_tanh", "swiglu", "rotary"),
    "cross_entropy": ("token_cross_entropy",),
    "arrays": ("add", "shared", "rows", "loss_per", "embedding"),
    "optimizer": ("squared_norms", "adamw"),
    "decoding": ("decoder",),
}

_portable: set[str] = set()  # groups that are switched to their definitions


class Kernels(NamedTuple):
    """A backend's kernels, as `fused` calls them.

    Attributes:
        call: run a kernel, see `operator.kernel_op.Caller`.
        product: (frozen weight, transposed) → what the product x · Wᵀ (`transposed`) or dy · W reads.
        storage: weight → number of the format in which kernels get it.
        head_forms: (frozen head, with gradient) → what the loss reads of it: three arrays, or None for those not read.
        layout: (plan of attention, by keys) → what its kernels read of the layout in both passes; `by_keys`: in the
            backward pass alone.
        table: frozen weight → what `embedding` reads of it, float32 or, in int16, bf16; None if the host looks rows up.
        rank_multiple: the columns of a projection onto A are padded to a multiple of this.
        trains_weights: are there kernels for gradients of weights, and do the others read float32 weights that train?
    """

    call: Callable[..., Any]
    product: Callable[[Matrix, bool], Any]
    storage: Callable[[Matrix], int]
    head_forms: Callable[[Matrix, bool], tuple]
    layout: Callable[[AttentionPlan, bool], Any]
    table: Callable[[Matrix], Any]
    rank_multiple: int
    trains_weights: bool


class _Choices(dict):
    """(jt.flags.use_cuda, operation) → implementation, chosen at the operation's first call."""

    def __missing__(self, key: tuple[int, str]) -> Callable:
        cuda, operation = key
        self[key] = found = _implementations("cuda" if cuda else "cpu").get(operation) or getattr(portable, operation)
        return found


_choices = _Choices()


def chosen(operation: str) -> Callable:
    """The implementation of an operation on the current device."""
    return _choices[jt.flags.use_cuda, operation]


def _implementations(device: str) -> dict[str, Callable]:
    """The operations that run on the device's backend now."""
    found = _backend(device)
    off = {operation for group in _portable for operation in OPERATIONS[group]}
    return {} if found is None else {name: run for name, run in found.OPERATIONS.items() if name not in off}


@functools.lru_cache(maxsize=None)
def _backend(device: str) -> ModuleType | None:
    """The backend of a device, if one exists and works. It may compile its kernels now."""
    if device not in BACKENDS:
        return None
    backend = importlib.import_module(BACKENDS[device])
    return backend if backend.works() else None


def _device() -> str:
    return "cuda" if jt.flags.use_cuda else "cpu"


def has_kernel(group: str) -> bool:
    """Do all operations of a group, one of `OPERATIONS`, run on fused kernels now?"""
    return _implementations(_device()).keys() >= set(OPERATIONS[group])


def kernels() -> Kernels:
    """Those of the current device, which must have some."""
    return _backend(_device()).KERNELS


def kernels_work() -> bool:
    """Does the current device have fused kernels? Compiles them at the first call."""
    return _backend(_device()) is not None


def trains_weights() -> bool:
    """Do the current device's fused kernels compute gradients of weights?"""
    return kernels_work() and kernels().trains_weights


def speeds_up(precision: str) -> bool:
    """Are products in this precision faster than in float32 on the current device?"""
    backend = _backend(_device())
    return backend is not None and precision in backend.precisions()


@contextmanager
def portable_operations(*groups: str) -> Iterator[None]:
    """Within the block these groups of operations (by default all) run on their definitions, in stock Jittor."""
    unknown = set(groups) - set(OPERATIONS)
    if unknown:
        raise ValueError(f"unknown operations: {', '.join(sorted(unknown))}; expected some of {', '.join(OPERATIONS)}")
    added = set(groups or OPERATIONS) - _portable
    _portable.update(added)
    _choices.clear()
    try:
        yield
    finally:
        _portable.difference_update(added)
        _choices.clear()
