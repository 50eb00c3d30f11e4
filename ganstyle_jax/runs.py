"""Run folders: what a run was, written before its first step, and a trained run read back to draw samples from.

run.json       method, config, data, loop settings, versions and devices
method.py      a copy of the method's file, where it is not one of the package's
metrics.jsonl  one line for each log interval;  tensorboard/ the same
evaluations.jsonl  how good its pictures were found to be, one record a line, see evaluate.py
samples/       a grid of the same latents every so often;  checkpoints/ see checkpoints.py
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import numpy as np

from ganstyle_jax import __version__
from ganstyle_jax.checkpoints import Checkpoints
from ganstyle_jax.files import UserError, atomic_path, first_line

BUILT_IN = {"dcgan": "ganstyle_jax.gan.dcgan"}
REQUIRED = ("Config", "init", "train_step", "latents", "generator", "sample")


def find_method(name: str) -> ModuleType:
    """The module of a built-in method ("dcgan") or of a file ("./my_gan.py"); UserError with what is accepted."""
    if name in BUILT_IN:
        return importlib.import_module(BUILT_IN[name])
    path = Path(name)
    if path.suffix != ".py":
        raise UserError(f"method must be {', '.join(BUILT_IN)} or a Python file such as ./my_gan.py, got {name!r}")
    if not path.is_file():
        raise UserError(f"there is no file {name}: give {', '.join(BUILT_IN)} or the path of a method's Python file")
    module_name = f"ganstyle_method_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return check_method(module)


def check_method(module: ModuleType) -> ModuleType:
    """The module itself, if it has what `train.run` calls; UserError otherwise."""
    missing = [name for name in REQUIRED if not hasattr(module, name)]
    if missing:
        raise UserError(
            f"{getattr(module, '__file__', module.__name__)} lacks {', '.join(missing)}: a method has "
            f"{', '.join(REQUIRED)}, as ganstyle_jax/gan/dcgan.py shows"
        )
    return module


def method_name(method: ModuleType) -> str:
    """What run.json calls the method: its short name, or method.py for one that is copied into the run folder."""
    names = {module: name for name, module in BUILT_IN.items()}
    return names.get(method.__name__, "method.py")


def describe(method: ModuleType, cfg: Any, data: str, loop: Any) -> dict:
    """The contents of run.json. "method", "config", "data" and "loop" say all that decides the result."""
    return {
        "method": method_name(method),
        "config": dataclasses.asdict(cfg),
        "data": data,
        "loop": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(loop).items()},
    } | surroundings()


def surroundings() -> dict:
    """What run.json tells of the program and the machine: "versions", "devices" and "processes"."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "versions": {"ganstyle_jax": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }


def write(run_dir: Path, method: ModuleType, description: dict) -> None:
    """run.json and, for a method of the user's own, method.py."""
    try:
        if description["method"] == "method.py":
            source = getattr(method, "__file__", None)  # one made in a notebook has none, and cannot be loaded again
            if source is not None and Path(source).resolve() != (run_dir / "method.py").resolve():
                with atomic_path(run_dir / "method.py") as path:
                    shutil.copyfile(source, path)
        with atomic_path(run_dir / "run.json") as path:
            path.write_text(json.dumps(description, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"the run folder {run_dir} cannot be written: {error.strerror or error}") from error


def read(run_dir: Path | str) -> dict:
    """The contents of run.json; UserError if there are none."""
    path = Path(run_dir) / "run.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{run_dir} is not a run folder: it holds no run.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    parts = {"method": str, "config": dict, "data": str, "loop": dict}
    if not isinstance(description, dict) or any(not isinstance(description.get(k), t) for k, t in parts.items()):
        raise UserError(f"{path} does not describe a run: {', '.join(parts)} were expected")
    return description


def differences(old: dict, new: dict) -> list[str]:
    """What makes two descriptions different runs, in words: method, data, config, seed and batch size."""

    def essence(description: dict) -> dict:
        loop = {k: description["loop"].get(k) for k in ("batch_size", "seed")}
        data = Path(description["data"]).name  # of a path its last part: the same set may be reached by another one
        return {"method": description["method"], "data": data} | description["config"] | loop

    a, b = essence(old), essence(json.loads(json.dumps(new)))
    return [f"{k} was {a.get(k)!r} and is {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)]


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
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def evaluations(run_dir: Path | str) -> list[dict]:
    """The records of evaluations.jsonl, in the order in which they were made; see evaluate.py for what is in one."""
    lines = read_lines(Path(run_dir) / "evaluations.jsonl")
    return [record for record in lines if {"step", "metrics", "protocol"} <= record.keys()]


def add_evaluation(run_dir: Path | str, record: dict) -> None:
    """Appends a record to evaluations.jsonl."""
    with open(Path(run_dir) / "evaluations.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def numbers_of(record: dict) -> dict[str, float]:
    """Those of a record's metrics that are a number, and not a list or a name."""
    return {name: value for name, value in record["metrics"].items() if isinstance(value, int | float)}


def protocol_of(record: dict) -> dict[str, Any]:
    """What two records must share for their figures to be compared, {"real.count": 5} for {"real": {"count": 5}}."""

    def flat(tree: dict, prefix: str) -> dict[str, Any]:
        parts = [flat(x, f"{prefix}{name}.") if isinstance(x, dict) else {prefix + name: x} for name, x in tree.items()]
        return {name: value for part in parts for name, value in part.items()}

    protocol = record.get("protocol")
    told = flat(protocol, "") if isinstance(protocol, dict) else {}
    return {name: value for name, value in told.items() if name not in ("seed", "fake.source")}


def best_step(run_dir: Path | str) -> int | None:
    """The step at which training found its pictures best, by the first metric that it was asked for; None without."""
    scores = {record["step"]: record["score"] for record in evaluations(run_dir) if "score" in record}
    return min(scores, key=lambda step: scores[step]) if scores else None


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained method: `ganstyle_jax.load("runs/mnist").sample(jax.random.key(0), 16)`."""

    method: ModuleType
    cfg: Any
    state: Any
    step: int

    def sample(self, key: jax.Array, n: int, batch_size: int = 64) -> np.ndarray:
        """(n, h, w, c) float32 in [-1, 1]; the same key gives the same images, whatever n is beyond them."""
        return self.decode(np.asarray(self.method.latents(key, n, self.cfg)), batch_size)

    def decode(self, latents: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Latents (n, ...) to images (n, h, w, c) float32 in [-1, 1]."""
        variables = jax.jit(self.method.generator, static_argnums=1)(self.state, self.cfg)
        draw = jax.jit(self.method.sample, static_argnums=2)
        images = []
        for start in range(0, len(latents), batch_size):
            part = latents[start : start + batch_size]
            # The last part is filled up, so that one compiled program serves all.
            filled = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), 0)])
            images.append(np.asarray(draw(variables, filled, self.cfg), np.float32)[: len(part)])
        return np.concatenate(images)


def load(run_dir: Path | str, step: int | Literal["best"] | None = None, **overrides: Any) -> LoadedRun:
    """The newest sound checkpoint of a run folder, or that of `step`, on the default device.

    step: "best" is the one that training found best (--evaluate-every). overrides replace fields of its config. Raises
    UserError where there is no such checkpoint or no such field.
    """
    run_dir = Path(run_dir)
    description = read(run_dir)
    if step == "best" and (step := best_step(run_dir)) is None:
        raise UserError(f"training of {run_dir} did not look for the best step: it does with --evaluate-every")
    name = description["method"]
    if name == "gatys":
        raise UserError(
            f"{run_dir} holds a picture that was stylized, and no network to draw from: see ganstyle report"
        )
    method = find_method(str(run_dir / name) if name.endswith(".py") else name)
    # JSON has lists where a config, which must be hashable, has tuples.
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in description["config"].items()}
    try:
        cfg = method.Config(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run_dir / 'run.json'} is of another version of {name}: {error}") from error
    unknown = set(overrides) - {field.name for field in dataclasses.fields(cfg)}
    if unknown:
        raise UserError(f"a {name} run has no setting {', '.join(sorted(unknown))}")
    if getattr(cfg, "dtype", None) == "float64":
        jax.config.update("jax_enable_x64", True)
    abstract = jax.eval_shape(lambda key: method.init(key, cfg), jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
    restored = Checkpoints(run_dir).restore(abstract, step)
    if restored is None:
        raise UserError(f"{run_dir} holds no checkpoint yet: train it first, or wait for its first checkpoint")
    return LoadedRun(method, dataclasses.replace(cfg, **overrides), restored[1], restored[0])
