"""Methods written for the contract of version 0.1.0, seen through that of today; run folders hold such files.

They had one source, whose size and channels their config knew; `latents(key, n, cfg)` where there is `requests` now;
`batches_per_step(cfg)`; and `batch["image"]`, which is the only source's now.
"""

import dataclasses
from types import ModuleType
from typing import Any

from ganstyle_jax.data import Wanted

SOURCE = "real"


def is_earlier(module: ModuleType) -> bool:
    """Whether a module is such a method, whole."""
    whole = all(hasattr(module, name) for name in ("Config", "init", "train_step", "latents", "generator", "sample"))
    return whole and not hasattr(module, "requests") and not hasattr(module, "sources")


def adapted(module: ModuleType) -> ModuleType:
    """A module with the functions of today, which call the earlier ones."""
    new = ModuleType(module.__name__, module.__doc__)
    vars(new).update({name: value for name, value in vars(module).items() if not name.startswith("__")})
    new.__file__ = getattr(module, "__file__", None)

    def sources(cfg: Any) -> dict[str, Wanted]:
        batches = module.batches_per_step(cfg) if hasattr(module, "batches_per_step") else 1
        return {SOURCE: Wanted(cfg.image_size, cfg.channels, batches)}

    def settle(cfg: Any, found: Any) -> Any:
        return dataclasses.replace(cfg, channels=found[SOURCE].image_shape[-1])

    def train_step(state: Any, batch: dict, key: Any, cfg: Any, axis_name: str | None = None) -> Any:
        return module.train_step(state, batch[SOURCE], key, cfg, axis_name)

    def requests(key: Any, n: int, cfg: Any, examples: Any = None) -> Any:
        return module.latents(key, n, cfg)

    vars(new).update(sources=sources, settle=settle, train_step=train_step, requests=requests)
    return new
