"""What a method is: the functions by which the loop, the judge and the commands know it, and nothing else of it.

A method is a module, built in or a Python file of the user's own. It has

    Config                                         a frozen dataclass; each field becomes a flag, its comment the help
    sources(cfg) -> {name: data.Wanted}            the pictures that it learns from; {} where it needs none
    init(key, cfg, constants) -> state             any tree of arrays
    train_step(state, batch, key, cfg, constants, axis_name=None) -> (state, {name: scalar})
                                                   batch[source]["image"] (b, h, w, c) float in [-1, 1], ["label"] (b,)
    requests(key, n, cfg, examples) -> tree        what n pictures are asked for by, leaves (n, ...): latents, labels,
                                                   pictures; examples[source]["image"] (n, h, w, c), looked up on demand
    generator(state, cfg, constants) -> variables  what pictures are made with, such as averaged weights
    sample(variables, requests, cfg) -> images     (n, h, w, c) float in [-1, 1]; or {title: images}, columns of a grid

and may have

    settle(cfg, found) -> cfg                      what is learned from the data, {name: data.Source}: channels, classes
    constants(cfg) -> tree                         frozen networks, style pictures: an argument of the program, never in
                                                   a checkpoint. Where this function is missing, so is the argument
                                                   `constants` of the others
    watch(metrics, pictures, real) -> (numbers, warning)
                                                   looks at each sample grid (pictures as `sample` gives them, real as
                                                   examples): {name: number} for the log, and what to warn of, or None
    judged(cfg) -> (title, source)                 which of the pictures that `sample` gives are compared with which
                                                   source; needed where there are several titles or sources
    requests_of(pictures, cfg) -> tree             requests made of the user's own pictures (n, h, w, c), for
                                                   `ganstyle apply`
    ApplySettings                                  a frozen dataclass, whose fields become flags of `ganstyle apply`;
                                                   with it, requests_of(pictures, cfg, settings)
    network(cfg) -> nn.image_transform.ImageTransform
                                                   what paints, where that is one of these: variables are {"params": its
                                                   weights}, requests {"content": pictures, "style": (n, styles)}; then
                                                   `ganstyle apply` takes large pictures in strips
    class_weights(label, cfg) -> weights           labels (n,), or weights of the classes (n, classes), to such weights:
                                                   `sample` takes both as requests["label"], for films between classes
    to_w(variables, requests, cfg) -> (n, styles, d), synthesize(variables, w, cfg) -> images
                                                   what lies between latents and pictures, where `ganstyle project` then
                                                   searches; and cfg.styles, how many a picture has. If variables have
                                                   "noise", a tree of maps (h, w) that all pictures are drawn with, it
                                                   can search these too: then maps (n, h, w), of each picture its own
    mix(variables, requests, others, cfg, layers) -> images
                                                   with the styles of `others` in these layers, for `ganstyle sample`
    discriminate(state, images, cfg), first_layer(variables, cfg), activations(variables, requests, cfg)
                                                   what `ganstyle explain` looks at

A method that optimises a picture instead of training a network, as style/gatys.py, has no `train_step`. It may have
`PlanSettings` and `lower_step(settings, cfg, devices)`, for `ganstyle plan`.

All randomness comes from `key`, and the step is written for one big batch. Of devices it knows `axis_name` alone, see
nn/layers.py: gradients and metrics are averaged over it, draws are the global batch's, BatchNorm is given it, and what
enters the state from the batch is the global batch's too (`layers.global_batch`).
"""

import collections
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ganstyle_jax import builtin, earlier
from ganstyle_jax.data import Batches, Source, Wanted, to_float
from ganstyle_jax.io.files import UserError, first_line
from ganstyle_jax.method_file import load_file

REQUIRED = ("Config", "sources", "init", "train_step", "requests", "generator", "sample")


@dataclasses.dataclass(frozen=True)  # equal for the same module, so that it can be a static argument of jit
class Method:
    """A method's module with what it leaves out filled in: every function of the contract can be called."""

    module: ModuleType

    @property
    def name(self) -> str:
        """What run.json calls it: its short name, or the name of the user's file."""
        names = {module: name for name, module in builtin.EVERY.items()}
        return names.get(self.module.__name__) or Path(self._path or self.module.__name__).name

    @property
    def file(self) -> Path | None:
        """The user's own file; None for a method that is built in, or made in a notebook."""
        built_in = self.module.__name__ in builtin.EVERY.values()
        return None if built_in or not self._path else Path(self._path)

    @property
    def _path(self) -> str | None:
        return getattr(self.module, "__file__", None)  # a module made in a notebook has none

    @property
    def config(self) -> type:
        return self.module.Config

    def has(self, name: str) -> bool:
        """Whether the method has an optional function."""
        return hasattr(self.module, name)

    def sources(self, cfg: Any) -> dict[str, Wanted]:
        return self.module.sources(cfg)

    def settle(self, cfg: Any, found: Mapping[str, Source]) -> Any:
        return self.module.settle(cfg, found) if self.has("settle") else cfg

    def constants(self, cfg: Any) -> Any:
        return self.module.constants(cfg) if self.has("constants") else ()

    def init(self, key: Any, cfg: Any, constants: Any = ()) -> Any:
        return self.module.init(key, cfg, *self._given(constants))

    def train_step(
        self, state: Any, batch: dict, key: Any, cfg: Any, constants: Any = (), axis_name: str | None = None
    ) -> tuple[Any, dict]:
        return self.module.train_step(state, batch, key, cfg, *self._given(constants), axis_name=axis_name)

    def requests(self, key: Any, n: int, cfg: Any, examples: Mapping[str, Any]) -> Any:
        return self.module.requests(key, n, cfg, examples)

    def generator(self, state: Any, cfg: Any, constants: Any = ()) -> Any:
        return self.module.generator(state, cfg, *self._given(constants))

    def sample(self, variables: Any, requests: Any, cfg: Any) -> Any:
        pictures = self.module.sample(variables, requests, cfg)
        # The order of titles is that of columns; of a plain dict, `jit` would make the alphabet's.
        return collections.OrderedDict(pictures) if isinstance(pictures, Mapping) else pictures

    def check_takes_pictures(self) -> None:
        """UserError where there is nothing to be made of the user's own pictures."""
        if not self.has("requests_of"):
            raise UserError(
                f"{self.name} makes pictures out of nothing, and not of other pictures: use ganstyle sample"
            )

    def requests_of(self, pictures: Any, cfg: Any, settings: Any = None) -> Any:
        """settings: of the method's ApplySettings, by default these as they are; none where it has no such."""
        self.check_takes_pictures()
        if not self.has("ApplySettings"):
            return self.module.requests_of(pictures, cfg)
        return self.module.requests_of(pictures, cfg, self.module.ApplySettings() if settings is None else settings)

    def watch(self, metrics: dict[str, float], pictures: Any, real: Mapping[str, Any]) -> tuple[dict, str | None]:
        return self.module.watch(metrics, pictures, real) if self.has("watch") else ({}, None)

    def judged(self, cfg: Any) -> tuple[str | None, str]:
        """(title or None, source): which pictures of `sample` are compared with which real ones. UserError if none."""
        if self.has("judged"):
            return self.module.judged(cfg)
        names = list(self.sources(cfg))
        if len(names) != 1:
            what = "learns from no pictures" if not names else f"has the sources {', '.join(names)}"
            raise UserError(
                f"{self.name} {what} and does not say which its own are compared with: it needs a function judged(cfg)"
            )
        return None, names[0]

    def check_judged(self, cfg: Any, constants: Any = ()) -> None:
        """UserError where `judged` names what the method does not have, of which nobody would hear before the end."""
        if not self.has("judged"):
            return
        title, source = self.module.judged(cfg)
        if source not in (wanted := self.sources(cfg)):
            raise UserError(
                f"judged(cfg) of {self.name} names the source {source!r}: it has {', '.join(wanted) or 'none'}"
            )
        import jax

        def titles(constants: Any) -> Any:
            key = jax.random.key(0)
            requests = self.requests(key, 2, cfg, imagined(wanted))
            return self.sample(self.generator(self.init(key, cfg, constants), cfg, constants), requests, cfg)

        pictures = jax.eval_shape(titles, constants)
        if isinstance(pictures, Mapping) and title not in pictures:
            raise UserError(f"judged(cfg) of {self.name} names the title {title!r}: sample gives {', '.join(pictures)}")

    def _given(self, constants: Any) -> tuple:
        return (constants,) if self.has("constants") else ()


def of(method: ModuleType | Method) -> Method:
    """The module through the contract; UserError naming what it lacks."""
    return method if isinstance(method, Method) else _of_module(method)


@functools.cache  # so that what is compiled for a method is compiled once
def _of_module(module: ModuleType) -> Method:
    if earlier.is_earlier(module):
        module = earlier.adapted(module)
    missing = [name for name in REQUIRED if not hasattr(module, name)]
    if missing:
        raise UserError(
            f"{getattr(module, '__file__', module.__name__)} lacks {', '.join(missing)}: a method that is trained has "
            f"{', '.join(REQUIRED)}, as {builtin.TRAINED[builtin.EXAMPLE].replace('.', '/')}.py shows"
        )
    parameters = getattr(module.Config, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise UserError(
            f"Config of {getattr(module, '__file__', module.__name__)} must be a frozen dataclass: write "
            "@dataclasses.dataclass(frozen=True) above it"
        )
    return Method(module)


def find(name: str | Path) -> Method:
    """A built-in method that is trained, or that of a file ("./my_gan.py"); UserError with what is accepted."""
    if str(name) in builtin.TRAINED:
        return of(module_of(str(name)))
    path = Path(name)
    if path.suffix != ".py":
        raise UserError(f"method must be {builtin.OR_FILE}, got {str(name)!r}")
    if not path.is_file():
        raise UserError(
            f"there is no file {name}: give {', '.join(builtin.TRAINED)} or the path of a method's Python file"
        )
    return of(load_file(path))


def module_of(name: str) -> ModuleType:
    """The module of a built-in method."""
    return importlib.import_module(builtin.EVERY[name])


def trains(name: str) -> bool:
    """Whether a method of run.json's is trained, and does not optimise a picture."""
    return name not in builtin.OPTIMISED


# ---------------------------------------------------------------------------------------------------------------------
# Examples, requests and pictures, whatever a method's are


class Examples(Mapping):
    """{source: {"image": (n, h, w, c) float32 in [-1, 1], ...}}, read when a source is looked up: many need none."""

    def __init__(self, read: Mapping[str, Callable[[], dict[str, np.ndarray]]]):
        self._read, self._known = dict(read), {}

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        if name not in self._known:
            self._known[name] = self._read[name]()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def imagined(wanted: Mapping[str, Wanted], n: int = 2) -> dict[str, dict[str, np.ndarray]]:
    """Grey pictures of the shapes that are wanted, in the place of examples."""
    return {
        name: {"image": np.zeros((n, *of.shape, of.channels or 3), np.float32), "label": np.zeros(n, np.int32)}
        for name, of in wanted.items()
    }


def examples_of(sources: Mapping[str, Source], n: int, seed: int = 0) -> Examples:
    """The first n of each source in the order that the seed gives; of a smaller set some come again."""

    def reader(source: Source) -> Callable[[], dict[str, np.ndarray]]:
        def read() -> dict[str, np.ndarray]:
            batch = next(Batches(source, n, seed, workers=1).stream(0, 1))
            return batch | {"image": to_float(batch["image"])}

        return read

    return Examples({name: reader(source) for name, source in sources.items()})


def count_of(requests: Any) -> int:
    """How many pictures are asked for."""
    import jax

    return len(jax.tree.leaves(requests)[0])


def latents_of(requests: Any) -> np.ndarray | None:
    """Those of the requests that are vectors to walk between, (n, d), by themselves or named "latents"; else None."""
    values = requests.get("latents") if isinstance(requests, Mapping) else requests
    vectors = getattr(values, "ndim", 0) == 2 and np.issubdtype(np.asarray(values).dtype, np.floating)
    return np.asarray(values) if vectors else None


def with_latents(requests: Any, latents: np.ndarray) -> Any:
    """Requests with these latents (n, d); all else, such as labels, as it is, or as in the first of fewer requests."""
    if not isinstance(requests, Mapping):
        return latents
    n = len(latents)
    others = {name: x if len(x) == n else x[:1].repeat(n, 0) for name, x in requests.items()}
    return others | {"latents": latents}


def in_classes(requests: Any, classes: Sequence[int]) -> Any:
    """Requests of these classes, one after the other and again from the first; as they are where there are none.

    UserError where the method is asked for pictures without a class.
    """
    if not classes:
        return requests
    if not isinstance(requests, Mapping) or "label" not in requests:
        raise UserError(f"classes {', '.join(map(str, classes))} are asked for, and this method's pictures have none")
    n = count_of(requests)
    return {**requests, "label": np.resize(np.asarray(classes, np.asarray(requests["label"]).dtype), n)}


def columns_of(requests: Any) -> int | None:
    """Columns of a roughly square grid in which each has one class; None where there are no classes, or too many."""
    if not isinstance(requests, Mapping) or "label" not in requests:
        return None
    labels = np.asarray(requests["label"])
    period, n = len(np.unique(labels)), len(labels)
    if labels.ndim != 1 or not 1 < period <= min(n, 40) or not (labels == np.resize(labels[:period], n)).all():
        return None
    return period * max(1, round(n**0.5 / period))


def column(pictures: Any, title: str | None = None) -> Any:
    """The images of a title, or those that come without one; of several titles without a choice, the last."""
    if not isinstance(pictures, Mapping):
        return pictures
    if title is not None and title not in pictures:
        raise UserError(f"there are pictures with the titles {', '.join(pictures)}, and none with {title!r}")
    return pictures[title] if title is not None else list(pictures.values())[-1]


def in_parts(draw: Callable[[Any], Any], requests: Any, batch_size: int) -> Any:
    """An iterator over draw(part), as NumPy, for parts of `batch_size` requests.

    The last part is filled up with copies of its last request, so that one compiled program serves all, and cut after.
    """
    import jax

    n = count_of(requests)
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)

        def fill(x: Any, start: int = start, size: int = size) -> np.ndarray:
            part = np.asarray(x[start : start + size])
            return np.concatenate([part, np.repeat(part[-1:], batch_size - size, 0)]) if size < batch_size else part

        drawn = draw(jax.tree.map(fill, requests))
        yield jax.tree.map(lambda x, size=size: np.asarray(x, np.float32)[:size], drawn)


# ---------------------------------------------------------------------------------------------------------------------
# Configs as JSON


def to_json(value: Any) -> Any:
    """A config, or a part of it, as JSON has it: dataclasses as objects, tuples as lists, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [to_json(part) for part in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a config may hold numbers, texts, paths, tuples and dataclasses of them, got {type(value)}")


def config_from_json(config: type, values: Mapping[str, Any]) -> Any:
    """The inverse of `to_json`, by the types of the fields. Raises what the config raises for values it refuses."""
    import typing

    hints = typing.get_type_hints(config)
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(config)})
    if unknown:
        raise ValueError(f"it has no {', '.join(unknown)}")
    return config(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(kind: Any, value: Any) -> Any:
    import typing

    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _from_json(args[0], value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return config_from_json(kind, value)
    if isinstance(value, list):
        if origin is tuple:
            kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
            return tuple(_from_json(k, v) for k, v in zip(kinds, value, strict=True))
        tuples = [option for option in args if typing.get_origin(option) is tuple]
        return _from_json(tuples[0], value) if tuples else tuple(value)
    if isinstance(value, str) and (kind is Path or (Path in args and str not in args)):
        return Path(value)
    if isinstance(value, Mapping):
        options = [option for option in args if isinstance(option, type) and dataclasses.is_dataclass(option)]
        return config_from_json(options[0], value) if options else dict(value)
    return float(value) if kind is float and isinstance(value, int) else value


def complete(config: type, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A config of an earlier version with the fields that it lacks at their defaults, and the names of those."""
    lacking = [field.name for field in dataclasses.fields(config) if field.name not in values]
    try:
        return config_from_json(config, values), lacking
    except (TypeError, ValueError) as error:
        raise UserError(f"its settings are of another version: {first_line(error)}") from error
