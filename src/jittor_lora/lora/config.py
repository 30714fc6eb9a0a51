"""The configuration of an adapter, and the modules adapted by default.

`LoraConfig` is defined among the settings, since those of a run are derived from its fields.
"""

from jittor_lora.model.families import FAMILIES
from jittor_lora.settings.kinds import ALL_LINEAR, FAST_PISSA, MAX_RANK
from jittor_lora.settings.lora import LoraConfig

__all__ = ["ALL_LINEAR", "DEFAULT_TARGETS", "FAST_PISSA", "MAX_RANK", "LoraConfig"]

DEFAULT_TARGETS = {name: family.targets for name, family in FAMILIES.items()}
