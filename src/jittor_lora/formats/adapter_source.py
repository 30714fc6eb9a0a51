"""An adapter's folder with its settings, read and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Union

from jittor_lora.formats.adapter_check import read_config
from jittor_lora.formats.adapter_files import CONFIG_FILE


@dataclass(frozen=True)
class AdapterSource:
    """
    Attributes:
        folder: with the adapter's files, in PEFT's layout.
        settings: its adapter_config.json, as `read_config` returned it.
    """

    folder: Path
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def config_path(self) -> Path:
        return self.folder / CONFIG_FILE


def open_adapter(source: Union[str, Path, AdapterSource]) -> AdapterSource:
    """The adapter in a folder, for whatever needs to know something about it; one that is open already as it is.

    Raises:
        UserError: as `read_config`.
    """
    if isinstance(source, AdapterSource):
        return source
    folder = Path(source)
    return AdapterSource(folder, read_config(folder / CONFIG_FILE))
