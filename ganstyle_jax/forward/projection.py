"""Pictures of one's own as latents of a generator: what it is asked for that comes closest (Abdal et al. 2019,
arXiv:1904.03189; Karras et al. 2020, arXiv:1912.04958, appendix D).

    found = projection.project(model, pictures, projection.Settings(steps=500))
    found.images, found.latents, found.distances

The latents are moved by Adam so that features of a network, here VGG's of some layers, are those of the picture. A
method that has `to_w` and `synthesize` is searched among its styles w, all others among their latents z. With
`noise_maps` the maps of noise are searched too, which a method keeps as variables["noise"].

Differs from Karras et al.: unless told otherwise the search begins at the nearest of some random latents, in place of
the average style, and maps of noise stay those of samples; where they are searched, it begins with those, and the
weight of their penalty goes with the number of pixels, since the paper's, of 1024 pixels a side, holds smaller maps
still. z is kept at the length that most draws have, as Menon et al. 2020 do (arXiv:2003.03808). Features are compared
as in LPIPS without its learned weights (Zhang et al. 2018, arXiv:1801.03924): each pixel's divided by their length.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ganstyle_jax import contract
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop.models import Model

TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
LARGEST = 256  # pixels of a side that features are taken of; larger pictures are averaged down
CANDIDATES = 64  # random latents of which the nearest is begun with
AVERAGED = 10_000  # random latents whose average is begun with, if so
PENALTY = 1e5 / 1024**2  # weight of `noise_penalty` for each pixel of the largest map: the paper's at 1024 pixels


@dataclasses.dataclass(frozen=True)
class Settings:
    """How latents are searched for."""

    steps: int = 500  # of Adam
    learning_rate: float = 0.1  # rises over the first twentieth of the steps, falls over the last quarter
    space: Literal["w", "w+", "z"] | None = None  # one style for all levels, one for each, latents; None: w, else z
    noise: float = 0.05  # of the search: standard deviation, of that of the latents, at the first step; then less
    features: str = "auto"  # network to compare by, its name or file; auto: vgg19 if it is here, else compact
    begin: Literal["nearest", "average"] = "nearest"  # at the nearest of 64 random latents, or at the mean of 10,000
    noise_maps: bool = False  # search the generator's maps of noise too, each picture's own, as StyleGAN2 has them

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")
        if self.begin not in ("nearest", "average"):
            raise ValueError(f"begin must be nearest or average, got {self.begin!r}")


@dataclasses.dataclass(frozen=True)
class Projection:
    """What was found for n pictures."""

    latents: np.ndarray  # (n, styles, d) of w and w+, (n, d) of z
    requests: Any  # what `sample` makes them of, in the space z; else None
    images: np.ndarray  # (n, h, w, c) in [-1, 1]
    begun: np.ndarray  # (n,) perceptual distances of what was begun with
    distances: np.ndarray  # (n,), of what was found
    noise: Any = None  # maps (n, h, w) as variables["noise"] has them; None where they were not searched for


def space_of(model: Model, settings: Settings) -> Literal["w", "w+", "z"]:
    """Where is searched. UserError for styles or maps of noise of a method without, and for one without latents."""
    has_styles = model.method.has("to_w") and model.method.has("synthesize")
    space = settings.space or ("w" if has_styles else "z")
    if space != "z" and not has_styles:
        raise UserError(f"{model.method.name} has no styles w: use --space z")
    if contract.latents_of(model.method.requests(jax.random.key(0), 1, model.cfg, {})) is None:
        raise UserError(f"{model.method.name} is not asked for pictures by latents, and nothing can be searched for")
    if settings.noise_maps and not (isinstance(model.variables, Mapping) and model.variables.get("noise")):
        raise UserError(f"{model.method.name} has no maps of noise to search: leave out --noise-maps")
    if settings.begin == "average" and space == "z":
        raise UserError("--begin average is of styles w: the average of latents z says nothing")
    return space


def project(
    model: Model,
    pictures: np.ndarray,
    settings: Settings = Settings(),
    seed: int = 0,
    every: int = 10,
    on_step: Callable[[int, np.ndarray], None] | None = None,
    label: int | None = None,
) -> Projection:
    """Searches for pictures (n, h, w, c), float in [-1, 1] of the model's size and channels, all at once.

    What is found for one does not depend on the others. on_step(step, images (n, h, w, c)): called at every so many
    steps. label: of a conditional model, the class; by default that of the nearest candidate. UserError as `space_of`.
    """
    space = space_of(model, settings)
    network, params = compared_by(settings.features)
    with model.precision():
        search = Search(model.method, model.cfg, space, settings, network)
        key_draw, key_search = jax.random.split(jax.random.key(seed))
        targets = jnp.asarray(pictures, getattr(model.cfg, "param_dtype", jnp.float32))
        count = AVERAGED if settings.begin == "average" else CANDIDATES
        candidates = model.method.requests(key_draw, count, model.cfg, {})
        if label is not None:
            candidates = candidates | {"label": jnp.full_like(candidates["label"], label)}
        state, begun, spread = search.begin(model.variables, params, targets, candidates)
        step = 0
        while step < settings.steps:
            count = min(every, settings.steps - step)
            state, images = search.advance(model.variables, params, targets, spread, state, key_search, step, count)
            step += count
            if on_step is not None:
                on_step(step, np.asarray(images))
        images, distances = search.look(model.variables, params, targets, state)
        latents, requests = search.found(state)
        noise = jax.tree.map(np.asarray, state[1]["noise"]) if settings.noise_maps else None
    latents, images, begun, distances = map(np.asarray, (latents, images, begun, distances))
    return Projection(latents, requests, images, begun, distances, noise)


def compared_by(name: str) -> tuple[Any, Any]:
    """(network, weights) whose features are compared."""
    if name == "auto":
        name = "vgg19" if "vgg19" in weights.kept_names() else "compact"
    network, params = weights.load_for_style(name)
    try:
        network.check(TAPS)
    except ValueError as error:
        raise UserError(f"pictures cannot be projected by {name}: {error}") from None
    return network, vgg.prepare(network, params) if isinstance(network, vgg.VGG) else params


def features(network: Any, params: Any, images: jax.Array) -> list[jax.Array]:
    """Images (b, h, w, c) to features (b, h', w', c'), each pixel's of length 1 and divided by sqrt(h' w')."""
    images = jnp.broadcast_to(images, (*images.shape[:3], 3)).astype(jnp.float32)
    times = max(1, max(images.shape[1:3]) // LARGEST)
    if times > 1:  # the mean of so many pixels
        images = lax.reduce_window(images, 0.0, lax.add, (1, times, times, 1), (1, times, times, 1), "VALID") / times**2
    taps = [tap for tap in TAPS if min(images.shape[1:3]) >= network.smallest_side([tap])]
    found = network.apply(params, images, taps)
    return [
        x * lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-10) / math.sqrt(x.shape[1] * x.shape[2])
        for x in found.values()
    ]


def distance(ours: list[jax.Array], theirs: list[jax.Array]) -> jax.Array:
    """(b,): the mean squared distance of pixels' features, added up over the layers."""
    return sum((jnp.sum((a - b) ** 2, (1, 2, 3)) for a, b in zip(ours, theirs, strict=True)), jnp.zeros(()))


def noise_penalty(maps: Any) -> jax.Array:
    """How much the pixels of maps (n, h, w) are like their neighbours, (n,) (Karras et al. 2020, appendix D).

    The squared mean product of each pixel with its left one, and with its upper one, round the edges; of every map, and
    of what it is when halved again and again down to 8 pixels: sums of four pixels over two, whose variance is that of
    the pixels if they do not depend on each other.
    """
    total = jnp.zeros(())
    for x in jax.tree.leaves(maps):
        while True:
            total += sum(jnp.mean(x * jnp.roll(x, 1, axis), (1, 2)) ** 2 for axis in (1, 2))
            n, h, w = x.shape
            if min(h, w) <= 8:
                break
            x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2).sum((2, 4)) / 2
    return total


def standardised(maps: Any) -> Any:
    """Maps (n, h, w), each with mean 0 and variance 1."""

    def standardise(x: jax.Array) -> jax.Array:
        x = x - x.mean((1, 2), keepdims=True)
        return x * lax.rsqrt(jnp.mean(x**2, (1, 2), keepdims=True) + 1e-12)

    return jax.tree.map(standardise, maps)


@dataclasses.dataclass(frozen=True)
class Search:
    """The compiled parts, of a method in one of its spaces.

    A state is (requests, what is searched for, Adam's); that is {"latents": ...} and, if they are searched, "noise".
    """

    method: contract.Method
    cfg: Any
    space: Literal["w", "w+", "z"]
    settings: Settings
    network: Any

    def drawn(self, variables: Any, requests: Any, searched: dict[str, Any]) -> jax.Array:
        """Pictures of latents and, if they are there, maps of noise."""
        latents = searched["latents"]
        if "noise" in searched:
            variables = {**variables, "noise": searched["noise"]}
        if self.space == "z":
            asked = latents if not isinstance(requests, dict) else requests | {"latents": latents}
            return contract.column(self.method.sample(variables, asked, self.cfg))
        module: Any = self.method.module
        if self.space == "w":
            latents = jnp.broadcast_to(latents, (len(latents), self.cfg.styles, latents.shape[2]))
        return module.synthesize(variables, latents, self.cfg)

    def of_requests(self, variables: Any, requests: Any) -> jax.Array:
        """Latents of random requests: (n, d), (n, 1, d) or (n, styles, d)."""
        if self.space == "z":
            return requests["latents"] if isinstance(requests, dict) else requests
        w = self.method.module.to_w(variables, requests, self.cfg)
        return w[:, :1] if self.space == "w" else w

    @functools.partial(jax.jit, static_argnums=0)
    def begin(
        self, variables: Any, params: Any, targets: jax.Array, candidates: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        """(state of the nearest candidates or of all on average, distances (n,), standard deviation of latents)."""
        wanted = features(self.network, params, targets)
        latents = self.of_requests(variables, candidates)
        mean, n = latents.mean(0), len(targets)
        spread = jnp.sqrt(jnp.mean(jnp.sum((latents - mean) ** 2, -1)))
        if self.settings.begin == "average":
            candidates, latents = jax.tree.map(lambda x: x[:1], candidates), mean[None]

        def apart(i: jax.Array) -> jax.Array:
            one, latent = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i, 1), (candidates, latents))
            seen = features(self.network, params, self.drawn(variables, one, {"latents": latent}))
            return distance([jnp.broadcast_to(x, y.shape) for x, y in zip(seen, wanted, strict=True)], wanted)

        distances = lax.map(apart, jnp.arange(len(latents)))  # (candidates, n)
        nearest = distances.argmin(0)
        requests, begun = jax.tree.map(lambda x: x[nearest], (candidates, latents))
        searched: dict[str, Any] = {"latents": begun}
        if self.settings.noise_maps:
            maps = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), variables["noise"])
            searched["noise"] = standardised(maps)
        return (requests, searched, self.adam().init(searched)), distances.min(0), spread

    def adam(self) -> optax.GradientTransformation:
        """Its rate is that of `rate`."""
        return optax.chain(optax.scale_by_adam(0.9, 0.999), optax.scale(-1.0))

    def rate(self, t: jax.Array) -> jax.Array:
        """At a share t of the steps, from 0 to 1."""
        falls = 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(1, (1 - t) / 0.25))
        return self.settings.learning_rate * falls * jnp.minimum(1, t / 0.05)

    @functools.partial(jax.jit, static_argnums=0)
    def advance(
        self,
        variables: Any,
        params: Any,
        targets: jax.Array,
        spread: jax.Array,
        state: Any,
        key: jax.Array,
        start: int,
        count: int,
    ) -> tuple[Any, jax.Array]:
        """(the state after `count` steps from `start`, pictures of it)."""
        wanted = features(self.network, params, targets)

        def step(i: jax.Array, state: Any) -> Any:
            requests, searched, opt_state = state
            latents = searched["latents"]
            t = (i / self.settings.steps).astype(latents.dtype)
            # The same for all pictures, so that none depends on how many there are.
            noise = jax.random.normal(jax.random.fold_in(key, i), (1, *latents.shape[1:]), latents.dtype)
            noise = noise * (spread * self.settings.noise * jnp.maximum(0, 1 - t / 0.75) ** 2)

            def loss(searched: dict[str, Any]) -> jax.Array:
                moved = searched | {"latents": searched["latents"] + noise}
                seen = features(self.network, params, self.drawn(variables, requests, moved))
                apart = distance(seen, wanted).sum()
                if "noise" not in searched:
                    return apart
                pixels = max(math.prod(x.shape[1:]) for x in jax.tree.leaves(searched["noise"]))
                return apart + PENALTY * pixels * noise_penalty(searched["noise"]).sum()

            updates, opt_state = self.adam().update(jax.grad(loss)(searched), opt_state)
            rate = self.rate(t + 1 / self.settings.steps)
            searched = jax.tree.map(lambda x, y: x + rate.astype(x.dtype) * y, searched, updates)
            latents = searched["latents"]
            if self.space == "z":
                length = jnp.sqrt(jnp.sum(latents**2, -1, keepdims=True))
                latents = latents * (math.sqrt(latents.shape[-1]) / jnp.maximum(length, 1e-8))
            searched |= {"latents": latents}
            if "noise" in searched:
                searched |= {"noise": standardised(searched["noise"])}
            return requests, searched, opt_state

        state = lax.fori_loop(start, start + count, step, state)
        return state, self.drawn(variables, *state[:2])

    @functools.partial(jax.jit, static_argnums=0)
    def look(self, variables: Any, params: Any, targets: jax.Array, state: Any) -> tuple[jax.Array, jax.Array]:
        """(pictures of a state, their distances (n,))."""
        images = self.drawn(variables, *state[:2])
        return images, distance(features(self.network, params, images), features(self.network, params, targets))

    def found(self, state: Any) -> tuple[jax.Array, Any]:
        """(latents, requests of them in the space z)."""
        requests, searched, _ = state
        latents = searched["latents"]
        if self.space != "z":
            return jnp.broadcast_to(latents, (len(latents), self.cfg.styles, latents.shape[2])), None
        return latents, contract.with_latents(requests, np.asarray(latents)) if isinstance(requests, dict) else latents
