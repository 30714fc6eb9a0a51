"""Which reader reads texts with a model, and with which adapter."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Callable, ContextManager, Sequence

from jittor_lora import ops
from jittor_lora.inference.ensemble_reader import EnsembleReader
from jittor_lora.inference.fused_reader import FusedReader
from jittor_lora.inference.portable_reader import PortableReader
from jittor_lora.inference.reader import Reader
from jittor_lora.lora.inject import adapters_of
from jittor_lora.model.causal_lm import CausalLM


def reader_of(model: CausalLM, acting: Callable[[], ContextManager] = nullcontext) -> Reader:
    """The fastest reader here.

    Args:
        acting: a context in which the adapters that it reads with are active; by default those active now.
    """
    with acting():
        return FusedReader(model) if ops.has_kernel("decoding") else PortableReader(model, acting)


def ensemble_of(model: CausalLM, names: Sequence[str | None]) -> Reader:
    """A reader that answers with several adapters together, see `EnsembleReader`.

    Args:
        names: of the adapters; None for the base alone.

    Raises:
        UserError: no such adapter.
    """
    return EnsembleReader(readers_of(model, names))


def first_texts() -> str:
    """What to tell someone who waits for the first texts."""
    compiling = "" if ops.has_kernel("decoding") else " Jittor also compiles operators now, once."
    return f"Still working on the first texts.{compiling}"


def readers_of(model: CausalLM, names: Sequence[str | None]) -> list[Reader]:
    """A reader per group, given the name of the group's adapter, None for the base alone, whatever is active otherwise.
    Groups with the same adapter share a reader, and all readers share the packed base.

    Raises:
        UserError: no such adapter.
    """
    adapters = adapters_of(model)
    readers = {name: reader_of(model, partial(adapters.only, *(() if name is None else (name,))))
               for name in dict.fromkeys(names)}
    return [readers[name] for name in names]
