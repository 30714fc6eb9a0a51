"""LoRA fine-tuning of GPT-2 and Llama-family models on Jittor.

The public names are brought when they are first asked for: some of them bring Jittor, which takes a moment.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "jittor_lora.config": ("RunConfig",),
    "jittor_lora.errors": ("UserError",),
    "jittor_lora.generation": ("Decoding", "Generator"),
    "jittor_lora.loading": ("Loaded", "load"),
    "jittor_lora.lora.config": ("LoraConfig",),
    "jittor_lora.lora.inject": ("Adapter",),
    "jittor_lora.model.sampling": ("Sampling",),
    "jittor_lora.tasks.evaluate": ("evaluate",),
    "jittor_lora.tasks.merge": ("merge",),
    "jittor_lora.tasks.train": ("train",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
