"""Adapters alone in other programs' formats."""

from __future__ import annotations

from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_folder
from jittor_lora.formats import litgpt_adapter, mlx_adapter
from jittor_lora.formats.adapter_export import updates_of
from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.session import load

# Format → what writes it into a folder, given the updates and the base's configuration
WRITERS = {
    "mlx": mlx_adapter.write,
    "litgpt": litgpt_adapter.write,
}


def export_adapter(form: str, base: str, adapter: Path | AdapterSource | None, output: Path) -> int:
    """Write an adapter's low-rank updates, in float32.

    Args:
        form: a key of `WRITERS`.

    Returns: the number of adapted modules.

    Raises:
        UserError: there is no adapter, or base and adapter do not fit, or the other program has no place for part of
            it; nothing is written then.
    """
    if adapter is None:
        raise UserError(f"--format {form} writes an adapter alone: name one with --adapter.")
    session = load(base, adapter)
    updates = updates_of(session.adapter, session.base.name)
    with atomic_folder(output) as folder:
        WRITERS[form](folder, updates, session.model.config)
    return len(updates.factors)
