"""The configuration of an adapter, and the modules adapted by default.

`LoraConfig` is defined among the settings, since those of a run are derived from its fields.
"""

from jittor_lora.settings.kinds import ALL_LINEAR, FAST_PISSA, MAX_RANK
from jittor_lora.settings.lora import LoraConfig

__all__ = ["ALL_LINEAR", "DEFAULT_TARGETS", "FAST_PISSA", "MAX_RANK", "LoraConfig"]

# Every projection of attention and feed-forward.
DEFAULT_TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
