"""Former names and modules, which still import with a `DeprecationWarning`."""

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec

NAMES = {"Loaded": "Session"}
MODULES = {
    "jittor_lora.config": "jittor_lora.settings.run",
    "jittor_lora.generation": "jittor_lora.inference.generator",
    "jittor_lora.loading": "jittor_lora.session",
    "jittor_lora.model.sampling": "jittor_lora.inference.sampling",
    "jittor_lora.runtime": "jittor_lora.system.runtime",
}


def current_name(name: str) -> str:
    """The present name of a public name of the package."""
    if name not in NAMES:
        return name
    warnings.warn(f"jittor_lora.{name} is now jittor_lora.{NAMES[name]}", DeprecationWarning, stacklevel=3)
    return NAMES[name]


class _MovedModules:
    """Imports a module that has moved: both paths give the same module object.

    A finder and loader; `importlib.abc`, whose classes it could name as its bases, takes 40 ms to import.
    """

    def find_spec(self, fullname, path=None, target=None):
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = module.__name__
        warnings.warn(f"{name} is now {MODULES[name]}", DeprecationWarning, stacklevel=2)
        sys.modules[name] = importlib.import_module(MODULES[name])  # what the import statement then binds


sys.meta_path.append(_MovedModules())
