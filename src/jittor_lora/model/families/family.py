"""What is known about a family of base models, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from jittor_lora.model.families.fields import Fields

if TYPE_CHECKING:
    from jittor_lora.model.config import ModelConfig


class Family(NamedTuple):
    """The facts about one `model_type`.

    Attributes:
        title: the models that people know.
        read: the fields of `ModelConfig` from config.json, but for `family` and `source`; problems are noted.
        shapes: name and shape of every tensor but the head's, as in the state dict of `architecture`.
        architecture: transformers' class with the output head.
        body: the module in it that holds all but the head; a checkpoint without head lacks this part of the names.
        embedding: the token embedding, within the body.
        network: which network computes it, a key of `model.load.NETWORKS`.
        targets: the modules that get an update by default: every projection of attention and feed-forward.
    """

    title: str
    read: Callable[[Fields], dict[str, Any]]
    shapes: Callable[[ModelConfig], dict[str, tuple[int, ...]]]
    architecture: str
    body: str
    embedding: str
    network: str
    targets: tuple[str, ...]

    def canonical(self, name: str) -> str:
        """A tensor's name in the model with the head: LlamaModel's `layers.0…` is `model.layers.0…`."""
        return name if name.startswith((f"{self.body}.", "lm_head.")) else f"{self.body}.{name}"
