"""The devices that JAX finds, or a sentence where it finds none."""

import os
from typing import Any

import jax

from ganstyle_jax.io.files import UserError, first_line

INSTALL = {
    "cuda": "pip install -e '.[cuda]', or ",
    "gpu": "pip install -e '.[cuda]', or ",
    "tpu": "pip install -r requirements-tpu.txt, or ",
}


def devices_or_sentence() -> list[Any]:
    """`jax.devices()`; UserError in place of what JAX raises where the platform that is asked for has no device."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for a platform that this jaxlib was built without
        wanted = os.environ.get("JAX_PLATFORMS") or getattr(jax.config, "jax_platforms", None) or ""
        platform = wanted.split(",")[0] or "accelerator"
        install = INSTALL.get(platform, "")
        reason = first_line(error) if str(error).strip() else "this jaxlib is built without it"
        reason = reason.partition(" (set JAX_PLATFORMS")[0]
        raise UserError(f"no {platform} device can be used ({reason}): {install}JAX_PLATFORMS=cpu") from error
