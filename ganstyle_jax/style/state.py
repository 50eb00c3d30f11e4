"""Where style transfer stands between two dispatches: all that it takes to go on from there, bit for bit."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ganstyle_jax.features.vgg import Network
from ganstyle_jax.style.config import Config, shapes_of
from ganstyle_jax.style.optimise import Iterate, begin
from ganstyle_jax.style.targets import canvas_of


class StateError(ValueError):
    """Arrays that are not a state of the work that is to go on."""


@flax.struct.dataclass
class State:
    """Of one picture, or with a leading axis of all arrays of several that are made together.

    It lasts until the next one is asked for, which takes its memory.
    """

    at: Iterate
    terms: dict[str, jax.Array]  # of the loss, at the beginning of this size or at `terms_at`
    terms_at: Any  # the evaluations at this size by which the loss had these terms
    size: int = flax.struct.field(pytree_node=False)  # which of the sizes, from 0
    before: int = flax.struct.field(pytree_node=False)  # evaluations at smaller sizes
    # (evaluations, loss) of each step since the state before, see `advance`; None at the beginning of a size
    log: tuple[jax.Array, jax.Array] | None = None


def arrays_of(state: State) -> dict[str, np.ndarray]:
    """Copies of all of it by name, for a file."""
    named = {f"at{jax.tree_util.keystr(path)}": x for path, x in jax.tree_util.tree_leaves_with_path(state.at)}
    named |= {f"terms/{name}": x for name, x in state.terms.items()}
    named |= {"terms_at": state.terms_at, "size": np.int32(state.size), "before": np.int32(state.before)}
    return {name: np.array(x) for name, x in named.items()}


def state_of(
    arrays: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    cfg: Config,
    network: Network,
    together: int | None = None,
    mesh: Mesh | None = None,
) -> State:
    """Undoes `arrays_of`, for pictures of which the content has that shape.

    together: pictures on the leading axis, None without one. mesh: devices that share the rows. Raises StateError for
    arrays that are not a state of such pictures.
    """
    shapes = shapes_of(shape, cfg, network)
    size, before = (int(arrays[name]) if name in arrays and np.ndim(arrays[name]) == 0 else -1 for name in _NUMBERS)
    if not 0 <= size < len(shapes) or before < 0:
        raise StateError(f"size must be from 0 to {len(shapes) - 1} and before not negative, got {size} and {before}")
    canvas = canvas_of(shapes[size], network, cfg, mesh)
    axis = () if together is None else (together,)
    image = jax.ShapeDtypeStruct((*axis, *canvas.shape, 3), jnp.float32)
    first = begin if together is None else jax.vmap(begin, in_axes=(0, None))
    wanted, structure = jax.tree_util.tree_flatten_with_path(jax.eval_shape(first, image, cfg))
    leaves = []
    for path, like in wanted:
        found = arrays.get(name := f"at{jax.tree_util.keystr(path)}")
        if found is None or found.shape != like.shape:
            raise StateError(f"{name} must have shape {like.shape}, got {None if found is None else found.shape}")
        leaves.append(jax.device_put(found))
    at = canvas.share_now(jax.tree_util.tree_unflatten(structure, leaves))
    terms = {name[6:]: jax.device_put(x) for name, x in arrays.items() if name.startswith("terms/")}
    return State(at, terms, np.asarray(arrays.get("terms_at", 0)), size=size, before=before)


_NUMBERS = ("size", "before")
