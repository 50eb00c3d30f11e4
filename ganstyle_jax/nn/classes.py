"""What conditional methods share: how many classes there are, and labels as numbers that can be multiplied with.

Their configs have `conditional` and `classes`, see `settled`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ganstyle_jax.io.files import UserError


def settled(conditional: bool, classes: int | None, real: Any) -> int | None:
    """How many classes a network is made for: as many as the open source `real` has. UserError where they differ."""
    if not conditional:
        return classes
    if not real.label_names:
        raise UserError(
            f"conditional needs pictures in classes, and {real.name} has none: give a folder for each class, or an "
            ".npz with labels"
        )
    if classes not in (None, len(real.label_names)):
        raise UserError(f"classes must be as many as {real.name} has, {len(real.label_names)}, got {classes}")
    return len(real.label_names)


def class_weights(label: jax.Array | None, cfg: Any) -> jax.Array:
    """Labels (b,) int, or weights of the classes (b, classes) float, to such weights: one-hot for labels.

    A product with them chooses what belongs to a class, and is differentiated without a scatter: the same bits every
    time. ValueError where there are no labels, or no number of classes.
    """
    if label is None or cfg.classes is None:
        raise ValueError(f"a conditional network needs labels and a number of classes, got {label} and {cfg.classes}")
    if jnp.issubdtype(label.dtype, jnp.floating):
        return label.astype(cfg.param_dtype)
    return jax.nn.one_hot(label, cfg.classes, dtype=cfg.param_dtype)
