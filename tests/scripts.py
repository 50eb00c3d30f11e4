"""Experiments as modules: they are scripts beside the package and not in it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def load_script(name: str) -> ModuleType:
    """experiments/<name>.py as a module, with the neighbours that it imports."""
    path = EXPERIMENTS / f"{name}.py"
    module_name = f"experiments_{name.replace('/', '_')}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    before = list(sys.path)
    sys.path.insert(0, str(path.parent))  # as when it is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module
