"""Names and modules of earlier versions that still import, each with a `DeprecationWarning`."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings

NAMES = {"Loaded": "Session"}
MODULES = {
    "jittor_lora.config": "jittor_lora.settings.run",
    "jittor_lora.generation": "jittor_lora.inference.generator",
    "jittor_lora.loading": "jittor_lora.session",
    "jittor_lora.model.sampling": "jittor_lora.inference.sampling",
    "jittor_lora.runtime": "jittor_lora.system.runtime",
}


def current_name(name: str) -> str:
    """What a public name of the package is called now."""
    if name not in NAMES:
        return name
    warnings.warn(f"jittor_lora.{name} is now jittor_lora.{NAMES[name]}", DeprecationWarning, stacklevel=3)
    return NAMES[name]


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules that have moved: the old path gives the very module at the new one."""

    def find_spec(self, fullname, path=None, target=None):
        return importlib.util.spec_from_loader(fullname, self) if fullname in MODULES else None

    def create_module(self, spec):
        warnings.warn(f"{spec.name} is now {MODULES[spec.name]}", DeprecationWarning, stacklevel=2)
        return None

    def exec_module(self, module):
        current = importlib.import_module(MODULES[module.__name__])
        vars(module).update((name, value) for name, value in vars(current).items() if not name.startswith("__"))
        module.__getattr__ = lambda name: getattr(current, name)


sys.meta_path.append(_MovedModules())
