"""Programs: those that were compiled are kept from run to run; those for chips that are not here are described."""

import dataclasses
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import jax

from ganstyle_jax.io.files import cache_dir


def keep() -> None:
    """Keeps what is compiled from now on, unless JAX_COMPILATION_CACHE_DIR or JAX's own setting names a place already.

    A place that cannot be written costs a warning of JAX's, and no more.
    """
    # Of no interest to a person, and repeated at every start: how the CPU's features were written down in the cache.
    warnings.filterwarnings("ignore", message=".*donated buffers.*")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("jax._src.xla_bridge").addFilter(_of_interest)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not jax.config.values.get("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        # Also what is compiled fast: a process makes dozens of small programs, which together take a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _of_interest(record: logging.LogRecord) -> bool:
    """Not that there is no driver for GPUs, where their compiler was installed to plan for them (`gpu-plan`)."""
    return not record.getMessage().startswith("Jax plugin configuration error") or Path("/dev/nvidiactl").exists()


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A step that can be compiled for devices that are not here, for `ganstyle plan`."""

    lowered: Any  # jax.stages.Lowered
    kept: int  # bytes that lie beside it on each chip, such as an optimizer's memory
    unit: str  # what the step does, in words
    advice: str  # what to do where it does not fit
