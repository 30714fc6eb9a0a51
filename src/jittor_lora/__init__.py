"""LoRA fine-tuning of GPT-2 and Llama-family models on Jittor.

Public names are imported on first access, since some of them import Jittor, which takes a moment.
"""

import importlib

from jittor_lora import _deprecated

__version__ = "0.1.0"

_MODULES = {
    "jittor_lora.errors": ("UserError",),
    "jittor_lora.formats.module_adapter": (
        "adapter_state_dict", "load_adapter", "load_adapter_state_dict", "save_adapter"),
    "jittor_lora.inference.generator": ("Decoding", "Generator"),
    "jittor_lora.inference.sampling": ("Sampling",),
    "jittor_lora.lora.config": ("LoraConfig",),
    "jittor_lora.lora.adapter": ("Adapter",),
    "jittor_lora.lora.inject": ("Adapters", "adapters_of"),
    "jittor_lora.lora.modules": ("adapt", "trainable"),
    "jittor_lora.session": ("Session", "load"),
    "jittor_lora.settings.run": ("RunConfig",),
    "jittor_lora.tasks.evaluate": ("evaluate",),
    "jittor_lora.tasks.merge": ("merge",),
    "jittor_lora.tasks.train": ("train",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    name = _deprecated.current_name(name)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
