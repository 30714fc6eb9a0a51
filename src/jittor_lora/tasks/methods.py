"""The two methods of fine-tuning: what each trains, says of itself, and leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jittor_lora.formats.hugging_face import Checkpoint, write_checkpoint
from jittor_lora.lora.inject import Adapter
from jittor_lora.lora.layer import Update
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.lora.whole import TrainedTensors, WholeModel
from jittor_lora.model.config import tensor_shapes
from jittor_lora.ops.backend import OPERATIONS, has_kernel, trains_weights
from jittor_lora.session import Session
from jittor_lora.tasks.lora_settings import adapter_line
from jittor_lora.training.trainable import Trainable


class Method(Protocol):
    """A method of fine-tuning, at work in a session."""

    @property
    def trainable(self) -> Trainable: ...

    def lines(self) -> list[str]:
        """What is trained, for the screen."""

    def summary(self) -> str | None:
        """The adapter's settings, for summary.json; None without one."""

    def depends_on_threads(self) -> bool:
        """Do stock operators compute part of the training? oneDNN splits their sums by the number of threads."""

    def save(self, folder: Path) -> None:
        """Write what was trained, as other programs read it."""


@dataclass(frozen=True)
class Lora:
    """An adapter is trained, and saved in PEFT's layout."""

    session: Session
    trainable: Adapter

    def lines(self) -> list[str]:
        count, config = self.trainable.count(), self.session.model.config
        total = count + sum(math.prod(shape) for shape in tensor_shapes(config).values())
        return [f"Trainable: {count:,} of {total:,} parameters ({100 * count / total:.2f} %) in "
                f"{len(self.trainable.versions)} modules", f"Adapter: {self.summary()}"]

    def summary(self) -> str:
        return adapter_line(self.trainable.config)

    def depends_on_threads(self) -> bool:
        if not all(map(has_kernel, OPERATIONS)) or OUTPUT_HEAD in self.trainable.updates:
            return True
        return not all(type(version) is Update and version.initial is None
                       and version.trained.keys() == {"lora_A", "lora_B"}
                       for version in self.trainable.versions.values())

    def save(self, folder: Path) -> None:
        self.session.save_adapter(folder, self.trainable.name)


@dataclass(frozen=True)
class Full:
    """All weights are trained, and saved as a Hugging Face directory."""

    session: Session
    trainable: WholeModel

    def lines(self) -> list[str]:
        size = 4 * self.trainable.count() / 2**30
        return [f"Trainable: all {self.trainable.count():,} parameters, in float32",
                f"Memory: {4 * size:.1f} GiB for weights, gradients and AdamW's two moments, plus activations; a "
                f"checkpoint takes {3 * size:.1f} GiB of disk, the model {size:.1f} GiB"]

    def summary(self) -> None:
        return None

    def depends_on_threads(self) -> bool:
        return not (trains_weights() and all(map(has_kernel, OPERATIONS)))

    def save(self, folder: Path) -> None:
        base = self.session.checkpoint
        tensors = TrainedTensors(base.tensors, self.session.model)
        self.session.save_tokenizer(folder)  # config.json, which makes the folder a model, comes last
        write_checkpoint(folder, Checkpoint(base.config, tensors, base.generation_config), overwrite=True)

