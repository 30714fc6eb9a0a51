"""Programs outside the package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_program(path: str) -> ModuleType:
    """The module of a program, such as "benchmarks/report.py"."""
    place = Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(f"program_{place.stem}", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look here
    spec.loader.exec_module(module)
    return module
