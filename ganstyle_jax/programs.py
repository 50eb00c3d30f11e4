"""Compiled programs are kept from run to run, of the commands and of whoever calls the library."""

import os
import warnings

import jax

from ganstyle_jax.io.files import cache_dir


def keep() -> None:
    """Keeps what is compiled from now on, unless JAX_COMPILATION_CACHE_DIR or JAX's own setting names a place already.

    A place that cannot be written costs a warning of JAX's, and no more.
    """
    # Of no interest to a person, and repeated at every start: how the CPU's features were written down in the cache.
    warnings.filterwarnings("ignore", message=".*donated buffers.*")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not jax.config.values.get("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
