"""From names to a network that is ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jittor_lora.formats.bases import ResolvedBase, load_base, resolve_base
from jittor_lora.formats.hugging_face import Checkpoint
from jittor_lora.formats.peft import load_adapter
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.lora.inject import Adapter
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.load import build_model


class Loaded(NamedTuple):
    """A network with what it was made from; `adapter` is None for the base alone."""

    model: CausalLM
    tokenizer: Tokenizer
    adapter: Adapter | None
    checkpoint: Checkpoint
    base: ResolvedBase


def load(base: str | ResolvedBase, adapter: Path | None = None, precision: str = "fp32") -> Loaded:
    """Load a base, by any name that `resolve_base` knows, and put an adapter into it.

    Args:
        precision: of products with the base's weights, "fp32" or "bf16"; see `build_model`.

    Raises:
        UserError: the base or the adapter cannot be found or read, or they do not fit together.
    """
    resolved = resolve_base(base) if isinstance(base, str) else base
    checkpoint, tokenizer = load_base(resolved)
    model = build_model(checkpoint.config, checkpoint.tensors, precision)
    return Loaded(model, tokenizer, load_adapter(adapter, model) if adapter else None, checkpoint, resolved)
