"""Models: what pictures are made with, in one file that says what it is, without a run folder around it.

    models.write("sea.safetensors", run.method, run.cfg, run.variables, dtype="float16")
    model = models.read("sea.safetensors")
    images = model.draw(model.method.module.requests_of(pictures, model.cfg))

A model file is .safetensors: the tree that the method's `generator` gives, a leaf by the names on the way to it
("params/down1/kernel"), and in its metadata

    method    the name of a method that comes with the package
    config    the method's config as JSON; of paths the file's name alone, since they are of the machine that trained
    version   of this layout, VERSION
    program   who wrote it, "ganstyle_jax 0.1.0"

and whatever else whoever writes it has to say, such as "label_names", the names of its classes as JSON. Nothing in it
is executed. Models that ship lie in ganstyle_jax/models.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ganstyle_jax import __version__, builtin, contract
from ganstyle_jax.contract import Method
from ganstyle_jax.io.files import UserError, atomic_path, first_line

VERSION = "1"
SUFFIX = ".safetensors"
SHIPPED = Path(__file__).parents[1] / "models"


@dataclasses.dataclass(frozen=True)
class Model:
    """A method with weights: what `ganstyle apply` and `ganstyle export` work with."""

    method: Method
    cfg: Any
    variables: Any  # NumPy or JAX arrays, as `generator` gives them
    origin: Path  # the file or run folder
    title: str  # for people: "step 1000", or a file's name
    x64: bool = False  # whether it computes in float64
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of the classes that it is conditional on, by label; () where they have none."""
        try:
            names = json.loads(self.metadata.get("label_names", "[]"))
        except (ValueError, RecursionError):
            return ()
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()

    def draw(self, requests: Any) -> Any:
        """Requests, leaves (n, ...), to images (n, h, w, c) in [-1, 1], or {title: such}, on the default device."""
        with self.precision():
            return draw(self.method, self.variables, requests, self.cfg)

    def precision(self) -> Any:
        """A context in which JAX computes as the model does."""
        return jax.enable_x64(True) if self.x64 else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=(0, 3))
def draw(method: Method, variables: Any, requests: Any, cfg: Any) -> Any:
    """The method's `sample`, compiled once for each shape and placement."""
    return method.sample(variables, requests, cfg)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write(
    path: Path | str,
    method: Method,
    cfg: Any,
    variables: Any,
    dtype: Literal["float32", "float16"] = "float32",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a model file, whole or not at all. Floats are kept as `dtype`, read back as float32; integers as they are.

    variables: dicts in dicts of arrays. Raises UserError for a user's own method, which a file without programs cannot
    hold, and ValueError for other trees and for weights that are not finite or too large for the dtype.
    """
    from safetensors.numpy import save_file

    if method.name not in builtin.TRAINED:
        raise UserError(
            f"{method.name} is a method of your own, whose program a model file does not hold: give its run folder "
            "where a model is asked for"
        )
    arrays = {name: _narrow(np.asarray(x), dtype, name) for name, x in flattened(variables).items()}
    said = {
        "method": method.name,
        "config": json.dumps(config_of(cfg)),
        "version": VERSION,
        "program": f"ganstyle_jax {__version__}",
    }
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, dict(metadata or {}) | said)


def flattened(tree: Any, above: str = "") -> dict[str, Any]:
    """{"params/down1/kernel": array, ...} of dicts in dicts; ValueError for another tree."""
    found = {}
    for name, part in tree.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"parts of a model need names without /, got {name!r} in {above or 'its tree'}")
        if isinstance(part, Mapping):
            found |= flattened(part, f"{above}{name}/")
        elif hasattr(part, "shape"):
            found[above + name] = part
        else:
            raise ValueError(f"a model is dicts in dicts of arrays, got {type(part).__name__} at {above}{name}")
    return found


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flattened`. ValueError where a name is both an array's and a dict's."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *way, last = name.split("/")
        place: Any = tree
        for step in way:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ValueError(f"{name} lies within an array")
        if last in place:
            raise ValueError(f"{name} is there twice")
        place[last] = array
    return tree


def _narrow(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    if not jax.numpy.issubdtype(array.dtype, np.floating):  # NumPy's does not know bfloat16
        return np.array(array, order="C")  # which, unlike ascontiguousarray, leaves a () a ()
    with np.errstate(over="ignore"):
        narrow = np.array(array, dtype, order="C")
    if not np.isfinite(narrow).all():
        worst = float(np.max(np.abs(array.astype(np.float64))))
        raise ValueError(f"{name} holds values that {dtype} cannot, up to {worst:.3g}")
    return narrow


def config_of(cfg: Any) -> dict[str, Any]:
    """A config as JSON has it, for others to read: of paths the names of their files."""
    return contract.to_json(_without_places(cfg))


def _without_places(cfg: Any) -> Any:
    """A config whose paths are the names of their files."""
    if isinstance(cfg, Path):
        return Path(cfg.name)
    if isinstance(cfg, tuple):
        return tuple(map(_without_places, cfg))
    if isinstance(cfg, Mapping):
        return {name: _without_places(part) for name, part in cfg.items()}
    if dataclasses.is_dataclass(cfg) and not isinstance(cfg, type):
        return {field.name: _without_places(getattr(cfg, field.name)) for field in dataclasses.fields(cfg)}
    return cfg


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def described(path: Path | str) -> dict[str, str]:
    """The metadata of a model file, of which the weights are not read. UserError for what is none."""
    from safetensors import safe_open

    path = Path(path)
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"there is no model {path}") from None
    except Exception as error:  # safetensors has errors of its own, and NumPy for types that it lacks
        raise UserError(f"{path} is not a sound {SUFFIX} file: {first_line(error)}") from error
    if not {"method", "config", "version"} <= set(metadata):
        raise UserError(
            f"{path} holds weights, and does not say of which method: give what `ganstyle export RUN --format "
            "safetensors` wrote"
        )
    written = f"{path} was written by {metadata.get('program', 'another program')}"
    if metadata["version"] != VERSION:
        raise UserError(
            f"{written} as a model of version {metadata['version'][:20]!r}, and version {VERSION} is read here: export "
            "it anew, or use the program that wrote it"
        )
    if metadata["method"] not in builtin.TRAINED:
        raise UserError(
            f"{written} as a model of the method {metadata['method'][:60]!r}, and {', '.join(builtin.TRAINED)} are "
            "known here: use the program that wrote it"
        )
    return metadata


def read(path: Path | str) -> Model:
    """A model file, weights in float32. UserError for what is none, or of another version."""
    from safetensors import safe_open

    path = Path(path)
    metadata = described(path)
    method = contract.find(metadata["method"])
    another = f"{path} is a model of another version than this program's {method.name}"
    try:
        cfg = contract.config_from_json(method.config, json.loads(metadata["config"]))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{another}: {first_line(error)}; export it anew from its run") from error
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"{path} is not a sound {SUFFIX} file: {first_line(error)}") from error
    arrays = {name: x.astype(np.float32) if x.dtype.kind == "f" else x for name, x in arrays.items()}
    if wrong := [name for name, x in arrays.items() if not np.isfinite(x).all()]:
        raise UserError(f"{path} holds NaN or infinity in {wrong[0][:100]}: export it anew from another step")
    try:
        return Model(method, cfg, nested(arrays), path, path.stem, metadata=metadata)
    except ValueError as error:
        raise UserError(f"{path} holds no tree of weights: {error}") from error


def shipped() -> dict[str, Path]:
    """The models that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob(f"*{SUFFIX}"))}


def place_of(name: Path | str) -> Path:
    """The run folder or file that is meant by a path, or by the name of a model that ships. UserError where none is."""
    path, here = Path(name), shipped()
    if str(name) in here and not path.is_file() and not (path / "run.json").exists():
        return here[str(name)]  # also where a folder is called so, as one of paintings may be
    if path.exists():
        return path
    names = f"the models that come with the package are {', '.join(here)}" if here else "no models come with it yet"
    raise UserError(
        f"there is no run folder or model {name}: give a folder of runs/, a {SUFFIX} file, or a name; {names}"
    )


def load(name: Path | str, step: int | Literal["best"] | None = None) -> Model:
    """A run folder's step, a model file, or a model that ships, as `place_of` finds it. UserError where it is none."""
    place = place_of(name)
    if place.is_file():
        if step is not None:
            raise UserError(
                f"--step is of a run folder's checkpoints, and {place} is a model of one step: leave it out"
            )
        return read(place)
    from ganstyle_jax.loop import runs  # which brings the checkpoints' library, and that takes a second

    run = runs.load(place, step)
    said = {"label_names": json.dumps(run.label_names)} if run.label_names else {}
    return Model(run.method, run.cfg, run.variables, place, f"step {run.step}", run.x64, said)
