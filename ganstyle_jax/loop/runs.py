"""Run folders: what a run leaves, and a trained run read back to draw samples from.

run.json       method, config, data, loop settings, versions and devices, see folder.py
method/        a copy of the method's file and of what it imports beside it, where it is not one of the package's
metrics.jsonl  one line for each log interval;  tensorboard/ the same
evaluations.jsonl  how good its pictures were found to be, one record a line, see judge/evaluate.py
samples/       a grid of the same requests every so often;  checkpoints/ see checkpoints.py
lock.json      who trains in it now, see lock.py
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ganstyle_jax import contract
from ganstyle_jax.contract import Method
from ganstyle_jax.io.files import UserError, first_line, listed
from ganstyle_jax.judge import scores
from ganstyle_jax.judge.scores import protocol_of
from ganstyle_jax.loop import processes
from ganstyle_jax.loop.checkpoints import Checkpoints
from ganstyle_jax.loop.devices import devices_or_sentence
from ganstyle_jax.loop.folder import (
    DEEPEST,
    check_same,
    completed,
    deeper,
    describe,
    differences,
    label_names,
    method_of,
    previous,
    read,
    record_changes,
    surroundings,
    write,
)

# run.json's part of it, by the name that everybody knows.
__all__ = ["check_same", "completed", "describe", "differences", "method_of", "previous", "read", "record_changes"]
__all__ += ["LoadedRun", "add_evaluation", "best_step", "evaluations", "load", "numbers_of", "surroundings", "write"]
__all__ += ["protocol_of", "read_lines", "with_weights_of"]

# ---------------------------------------------------------------------------------------------------------------------
# What was logged and measured


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, none where there is no file; a line cut off by a kill is passed over."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [line for line in found if isinstance(line, dict) and not deeper(line, DEEPEST)]


def evaluations(run_dir: Path | str) -> list[dict]:
    """The records of evaluations.jsonl, in the order in which they were made; see evaluate.py for what is in one."""
    lines = read_lines(Path(run_dir) / "evaluations.jsonl")
    kinds = {"step": (int, float), "metrics": dict, "protocol": dict}
    return [record for record in lines if all(isinstance(record.get(name), kind) for name, kind in kinds.items())]


def add_evaluation(run_dir: Path | str, record: dict) -> None:
    """Appends a record to evaluations.jsonl."""
    with open(Path(run_dir) / "evaluations.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def numbers_of(record: dict) -> dict[str, float]:
    """Those of a record's metrics that are a number, and not a list or a name."""
    metrics = record.get("metrics")
    return {name: value for name, value in metrics.items() if _is_number(value)} if isinstance(metrics, dict) else {}


def best_step(run_dir: Path | str) -> int | None:
    """The step at which training found its pictures best, by the first metric that it was asked for; None without.

    Only those are compared that were measured in the same way, and by the same metric, as the newest.
    """
    return scores.best(evaluations(run_dir))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# A run read back


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained method: `ganstyle_jax.load("runs/mnist").sample(jax.random.key(0), 16)`."""

    method: Method
    cfg: Any
    state: Any
    step: int
    constants: Any = ()
    data: str | dict[str, str] = ""  # what it was trained on, {source: text} where there are several
    run_dir: Path = Path()
    x64: bool = False  # whether it computes in float64
    label_names: tuple[str, ...] = ()  # of the classes that it is conditional on, by label; () where they have none

    def precision(self) -> Any:
        """A context in which JAX computes as the run does: with float64, if its config asks for it."""
        return _precision(self.x64)

    @functools.cached_property
    def variables(self) -> Any:
        """What pictures are made with."""
        with self.precision():
            return _variables(self.method, self.state, self.cfg, self.constants)

    def examples(self, n: int, seed: int = 0) -> contract.Examples:
        """{source: {"image": (n, h, w, c) float32 in [-1, 1], ...}} of the run's data, opened when looked up."""

        def reader(name: str) -> Any:
            def read() -> dict[str, np.ndarray]:
                from ganstyle_jax.loop import sources  # after the judge, which reads runs

                given = sources.named(self.data or None, self.method, self.cfg)
                found = sources.opened(given, self.method, self.cfg, seed)
                return contract.examples_of({name: found[name]}, n, seed)[name]

            return read

        return contract.Examples({name: reader(name) for name in self.method.sources(self.cfg)})

    def requests(self, key: jax.Array, n: int) -> Any:
        """What n pictures are asked for by, a tree of NumPy arrays (n, ...)."""
        with self.precision():
            return jax.tree.map(np.asarray, self.method.requests(key, n, self.cfg, self.examples(n)))

    def draw(self, requests: Any, batch_size: int = 64) -> Any:
        """Requests, leaves (n, ...), to images (n, h, w, c) float32 in [-1, 1], or {title: such}.

        UserError where the network gives what is not finite.
        """
        with self.precision():
            parts = contract.in_parts(
                lambda part: _draw(self.method, self.variables, part, self.cfg), requests, batch_size
            )
            drawn = jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
        if not all(np.isfinite(images).all() for images in jax.tree.leaves(drawn)):
            raise UserError(
                f"{self.run_dir}: what step {self.step} draws is not finite (NaN or infinity), as after a training "
                "that diverged, or from weights that hold such: choose another step or other weights"
            )
        return drawn

    decode = draw

    def pictures(self, drawn: Any) -> Any:
        """Of what `draw` gives, the images that are compared with real ones, (n, h, w, c)."""
        title = self.method.judged(self.cfg)[0] if self.method.has("judged") else None
        return contract.column(drawn, title)

    def sheet(self, key: jax.Array, n: int, batch_size: int = 64, classes: Sequence[int] = ()) -> Any:
        """All that n requests give, as `draw`; the same key gives the same images, whatever n is beyond them.

        classes: those of a conditional run to draw, one after the other and again from the first; by default all.
        """
        # Whole parts of requests of their own: with BatchNorm by the batch, copies would change those beside them.
        asked = -(-n // batch_size) * batch_size
        requests = contract.in_classes(self.requests(key, asked), classes)
        return jax.tree.map(lambda x: x[:n], self.draw(requests, batch_size))

    def sample(self, key: jax.Array, n: int, batch_size: int = 64, classes: Sequence[int] = ()) -> np.ndarray:
        """(n, h, w, c) float32 in [-1, 1] of those that are compared with real images; see `sheet`."""
        return self.pictures(self.sheet(key, n, batch_size, classes))

    def label_of(self, name: str) -> int:
        """The label of a class, by its name or else its number. UserError with the classes that there are."""
        if not getattr(self.cfg, "conditional", False):
            raise UserError(
                f"{self.run_dir} is not conditional and knows no classes, got {name!r}: train with --conditional"
            )
        names = self.label_names or tuple(map(str, range(self.cfg.classes)))
        if name in names:
            return names.index(name)
        if name.isdecimal() and int(name) < len(names):
            return int(name)
        raise UserError(f"{self.run_dir} has no class {name!r}: it has {listed(names, most=40)}")


def load(
    run_dir: Path | str,
    step: int | Literal["best"] | None = None,
    x64: bool | None = None,
    **overrides: Any,
) -> LoadedRun:
    """The newest sound checkpoint of a run folder, or that of `step`, on the default device.

    step: "best" is the one that training found best (--evaluate-every). x64: compute in float64 while loading and
    drawing; by default where the config's dtype is float64. overrides replace fields of its config. Raises UserError
    where there is no such checkpoint or no such field.
    """
    run_dir = Path(run_dir)
    description = read(run_dir)
    if step == "best" and (step := best_step(run_dir)) is None:
        raise UserError(f"training of {run_dir} did not look for the best step: it does with --evaluate-every")
    name = description["method"]
    if not contract.trains(name):
        raise UserError(
            f"{run_dir} holds a picture that was optimised ({name}), and no network to draw from: see ganstyle report"
        )
    method = method_of(run_dir, description)
    cfg = completed(run_dir, description, method)
    unknown = set(overrides) - {field.name for field in dataclasses.fields(cfg)}
    if unknown:
        raise UserError(f"a {name} run has no setting {', '.join(sorted(unknown))}")
    wide = getattr(cfg, "dtype", None) == "float64" if x64 is None else x64
    devices_or_sentence()
    with _precision(wide):
        constants = method.constants(cfg)
        abstract = jax.eval_shape(lambda key: method.init(key, cfg, constants), jax.random.key(0))
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
        restored = Checkpoints(run_dir).restore(abstract, step)
    if restored is None:
        raise UserError(f"{run_dir} holds no checkpoint yet: train it first, or wait for its first checkpoint")
    found, state = restored
    cfg = dataclasses.replace(cfg, **overrides)
    return LoadedRun(method, cfg, state, found, constants, description["data"], run_dir, wide, label_names(description))


def with_weights_of(init_from: Path | str, cfg: Any, state: Any) -> Any:
    """`state` with the weights of another run; its step and optimizer states (fields step, opt_state) stay new.

    Weights are given the dtypes of `state`. UserError naming what the other run has otherwise.
    """

    def weights(tree: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if not is_fresh(path)}

    def is_fresh(path: tuple) -> bool:
        return any(getattr(key, "name", getattr(key, "key", None)) in ("step", "opt_state") for key in path)

    theirs, ours = weights(load(init_from).state), weights(state)
    shapes = [{name: tuple(leaf.shape) for name, leaf in part.items()} for part in (theirs, ours)]
    if shapes[0] != shapes[1]:
        name = sorted(k for k in theirs | ours if shapes[0].get(k) != shapes[1].get(k))[0]
        there, here = (part.get(name, "missing") for part in shapes)
        raise UserError(
            f"the weights in {init_from} are those of another network than {cfg}: {name} is {there} there and "
            f"{here} here"
        )

    def choose(path: tuple, new: Any) -> Any:
        if is_fresh(path):
            return new
        return processes.put(np.asarray(theirs[jax.tree_util.keystr(path)]).astype(new.dtype), new.sharding)

    return jax.tree_util.tree_map_with_path(choose, state)


def precision_of(cfg: Any) -> Any:
    """A context in which JAX computes as the config asks: in float64, if its dtype is that."""
    return _precision(getattr(cfg, "dtype", None) == "float64")


def _precision(x64: bool) -> Any:
    return jax.enable_x64(True) if x64 else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=(0, 2))
def _variables(method: Method, state: Any, cfg: Any, constants: Any) -> Any:
    return method.generator(state, cfg, constants)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _draw(method: Method, variables: Any, requests: Any, cfg: Any) -> Any:
    return method.sample(variables, requests, cfg)
