"""An adapter with its settings, read and checked once, in whatever format it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Optional, Union

from jittor_lora.formats import gguf_adapter_reader, litgpt_adapter, mlx_adapter
from jittor_lora.formats.adapter_check import checked_config, open_weights, read_config
from jittor_lora.formats.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from jittor_lora.formats.array_file import ArrayFile
from jittor_lora.formats.low_rank import peft_arrays, peft_settings_of
from jittor_lora.formats.opened_adapter import OpenedAdapter
from jittor_lora.formats.tensor_file import TensorFile
from jittor_lora.model.config import ModelConfig


class AdapterFormat(NamedTuple):
    """Another program's format.

    Attributes:
        title: for the user.
        is_here: whether the path is such an adapter, by a look at its settings.
        opened: reads and checks its settings.
    """

    title: str
    is_here: Callable[[Path], bool]
    opened: Callable[[Path], OpenedAdapter]


PEFT = "PEFT"
FORMATS = (
    AdapterFormat("mlx-lm", mlx_adapter.is_here, mlx_adapter.opened),
    AdapterFormat("litgpt", litgpt_adapter.is_here, litgpt_adapter.opened),
    AdapterFormat("GGUF", gguf_adapter_reader.is_here, gguf_adapter_reader.opened),
)


@dataclass(frozen=True)
class AdapterSource:
    """
    Attributes:
        folder: with the adapter's files; of a format that is one file, that file.
        settings: PEFT's adapter_config.json, as `read_config` returned it; of other formats the base's name alone.
        title: of its format.
        opened: what another format's file was opened as; None for PEFT's.
    """

    folder: Path
    settings: Mapping[str, Any]
    title: str = PEFT
    opened: Optional[OpenedAdapter] = None

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def config_path(self) -> Path:
        """The file with the settings."""
        return self.folder / CONFIG_FILE if self.opened is None else self.opened.config_path

    def contents(self, base: Optional[ModelConfig] = None, numbers: bool = True) -> tuple[Mapping[str, Any],
                                                                                          TensorFile]:
        """Settings and tensors in PEFT's form.

        Args:
            base: of the base model; some formats cannot be read without it.
            numbers: also check that all numbers are finite; in other formats they always are.

        Raises:
            UserError: the weights are missing, damaged or hostile, or not for this base, or need one; all offenders
                are listed.
        """
        if self.opened is None:
            return self.settings, open_weights(self.folder / WEIGHTS_FILE, numbers)
        updates = self.opened.read(base)
        settings = checked_config(self.config_path, peft_settings_of(updates, base.layers if base else None))
        arrays = peft_arrays(updates.factors, updates.embeddings, updates.magnitudes)
        return settings, ArrayFile(self.opened.weights_path, arrays)


def open_adapter(source: Union[str, Path, AdapterSource]) -> AdapterSource:
    """The adapter in a folder or file, for whatever needs to know something about it; one that is open already as it
    is.

    Raises:
        UserError: as `read_config`.
    """
    if isinstance(source, AdapterSource):
        return source
    path = Path(source)
    for form in FORMATS:
        if form.is_here(path):
            opened = form.opened(path)
            return AdapterSource(path, {"base_model_name_or_path": opened.base}, form.title, opened)
    return AdapterSource(path, read_config(path / CONFIG_FILE))
