"""Names of the files in an adapter's folder: PEFT's two, and ours, some of which a run folder has too; and where an
adapter may be."""

from __future__ import annotations

from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.formats.first_bytes import GGUF, first_bytes

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"  # of PEFT's older versions, and with safe_serialization=False
RECORD_FILE = "base_model.json"
PROMPTING_FILE, CHAT_TEMPLATE_FILE = "prompting.json", "chat_template.jinja"
# A folder with one of these may hold an adapter; the second is litgpt's, and the first is mlx-lm's too.
_SETTINGS_FILES = (CONFIG_FILE, "hyperparameters.yaml")


def may_be_adapter(path: Path) -> bool:
    """Whether `adapter_source.open_adapter` may find an adapter here: a folder with settings, or a GGUF file."""
    try:
        return any((path / name).is_file() for name in _SETTINGS_FILES) or (
            path.is_file() and first_bytes(path).startswith(GGUF))
    except (UserError, OSError, ValueError):
        return False
