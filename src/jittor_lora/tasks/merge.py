"""Saving a model with its adapter folded in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jittor_lora.files.atomic import atomic_folder
from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.formats.hugging_face import Checkpoint, write_checkpoint
from jittor_lora.lora.merge import MergedTensors, unties_head
from jittor_lora.session import Session, load


def merge(base: str, adapter: Path | AdapterSource, output: Path, tolerance: float = 1e-3,
          base_precision: str = "auto") -> float:
    """Write `output`, a Hugging Face directory with the adapter's update added to the base's weights in float32.

    Args:
        tolerance: largest allowed difference between a logit of the merged model and of the base with the adapter.

    Returns: that difference, measured on a probe text.

    Raises:
        UserError: base and adapter do not fit, or the difference exceeds `tolerance`; nothing is written then.
    """
    session = load(base, adapter, base_precision=base_precision)
    difference = session.check_merge(tolerance)
    with atomic_folder(output) as folder:
        write_checkpoint(folder, merged_checkpoint(session))
        session.save_tokenizer(folder)
    return difference


def merged_checkpoint(session: Session) -> Checkpoint:
    """The base's checkpoint with the active adapters folded in.

    If they change the embedding or the head of a model that ties the two, the merged model has an untied head.
    """
    checkpoint, untied = session.checkpoint, unties_head(session.model)
    config = checkpoint.config
    if untied:
        config = replace(config, tied_head=False, source={**config.source, "tie_word_embeddings": False})
    tensors = MergedTensors(checkpoint.tensors, session.model, untied)
    return Checkpoint(config, tensors, checkpoint.generation_config)
