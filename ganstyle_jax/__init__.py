"""Adversarial networks and style transfer in JAX. `load` reads a trained run; `ganstyle --help` shows the commands."""

import importlib
from typing import Any

__version__ = "0.1.0"

# The front door: what users' own code imports from here, and where it lives. On demand, so that `ganstyle --help` need
# not wait for JAX.
_MODULES = {
    "images": "ganstyle_jax.io.images",
    "layers": "ganstyle_jax.nn.layers",
    "losses": "ganstyle_jax.nn.losses",
    "pictures": "ganstyle_jax.io.pictures",
    "train": "ganstyle_jax.loop.train",
    "weights": "ganstyle_jax.features.weights",
}
_NAMES = {
    "load": "ganstyle_jax.loop.runs",
    "UserError": "ganstyle_jax.io.files",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
