"""From a first image to a better one: the variables, the optimizers, and the loop that runs on the devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ganstyle_jax.features.vgg import Network, Params
from ganstyle_jax.nn import compiled
from ganstyle_jax.nn.tiles import Canvas
from ganstyle_jax.style import line_search
from ganstyle_jax.style.config import SCALES, Config
from ganstyle_jax.style.targets import Targets
from ganstyle_jax.style.terms import loss_terms

LOSS_SCALE = 1e4  # so that gradients are longer than 1, or optax would not take the first step of L-BFGS to be so long
COARSENESS = 0.4  # how much further a step moves the average of a square twice as large, as a power of 2


@flax.struct.dataclass
class Iterate:
    """Where the optimisation of one image stands, or of several with a leading axis."""

    base: jax.Array  # (h, w, 3), the image at the beginning
    x: jax.Array  # (h, w, 3), the variables, see `to_image`
    mean: jax.Array  # (h, w, 3), running mean of the images since then; of no size without `cfg.averaging`
    value: jax.Array  # loss at x
    gradient: jax.Array
    opt_state: Any
    steps: jax.Array  # of the optimizer
    evaluations: jax.Array  # of loss and gradient
    resets: jax.Array  # how often L-BFGS forgot its history, because a line search failed or a value was not finite
    stuck: jax.Array  # resets in a row: two mean that nothing more can be gained in this arithmetic


# ---------------------------------------------------------------------------------------------------------------------
# The variables


def to_image(base: jax.Array, x: jax.Array, cfg: Config, canvas: Canvas) -> jax.Array:
    """The image that the variables stand for, (h, w, 3) both: for Adam they are the image itself.

    optax caps the first step of L-BFGS to length 1, which in these variables is 0.03 for every colour value.
    """
    if cfg.optimizer == "adam":
        return x
    # Of the same part of the array however large it is, or what lies at the borders would depend on tiles and rows.
    height, width = (side + -side % 2**SCALES for side in canvas.extent)
    change = spread(canvas.clear(x)[:height, :width], cfg.tileable)
    change = jnp.pad(change, [(0, side - part) for side, part in zip(x.shape, change.shape, strict=True)])
    return base + 0.03 * (3 * canvas.extent[0] * canvas.extent[1]) ** 0.5 * change


def spread(x: jax.Array, circular: bool = False) -> jax.Array:
    """A symmetric positive linear map of (h, w, c) that enlarges what varies over 2^k pixels by about 2^(COARSENESS k).

    Natural images vary the more the coarser one looks, about as the wavelength, and so do sensible changes to them.
    What is coarse is made of smooth bumps: squares would leave their outlines in the picture. circular: of an image
    that goes on at its other end, whose sides are multiples of 2^SCALES.
    """
    h, w, _ = x.shape
    edge = 2**SCALES
    levels = [jnp.pad(x, ((0, -h % edge), (0, -w % edge), (0, 0)))]
    for _ in range(SCALES):
        levels.append(_halved(_halved(levels[-1], 0, circular), 1, circular))
    added = jnp.zeros_like(levels[-1])
    for k in range(SCALES, 0, -1):
        added += (2 ** (COARSENESS * k) - 2 ** (COARSENESS * (k - 1))) * levels[k]
        added = _doubled(_doubled(added, 0, circular), 1, circular)
    return x + added[:h, :w]


def _halved(x: jax.Array, axis: int, circular: bool) -> jax.Array:
    """Means of neighbours by 1, 3, 3, 1 eighths along an axis, half as many; `_doubled` transposed, and halved."""
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    first, second = jnp.take(pairs, 0, axis + 1), jnp.take(pairs, 1, axis + 1)
    # At an end what has no neighbour is taken for its own.
    after = _moved(first, axis, 1, circular, second)
    before = _moved(second, axis, -1, circular, first)
    return 0.375 * (first + second) + 0.125 * (before + after)


def _doubled(x: jax.Array, axis: int, circular: bool) -> jax.Array:
    """Linear interpolation along an axis to twice as many."""
    before, after = (_moved(x, axis, by, circular, x) for by in (-1, 1))
    pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def _moved(x: jax.Array, axis: int, by: int, circular: bool, ends: jax.Array) -> jax.Array:
    """The value that lies 1 after (by = 1) or before (-1) each; at the end that of `ends` at the same place."""
    if circular:
        return jnp.roll(x, -by, axis)
    last = x.shape[axis] - 1
    if by == 1:
        parts = [lax.slice_in_dim(x, 1, last + 1, axis=axis), lax.slice_in_dim(ends, last, last + 1, axis=axis)]
    else:
        parts = [lax.slice_in_dim(ends, 0, 1, axis=axis), lax.slice_in_dim(x, 0, last, axis=axis)]
    return jnp.concatenate(parts, axis)


def variables(image: jax.Array, cfg: Config) -> tuple[jax.Array, jax.Array]:
    """The base and the variables at which the optimisation of an image begins; copies, because they are donated."""
    return jnp.copy(image), jnp.zeros_like(image) if cfg.optimizer == "lbfgs" else jnp.copy(image)


@functools.partial(compiled.soon, static_argnames="canvas")
def picture_of(at: Iterate, cfg: Config, canvas: Canvas) -> jax.Array:
    """The image so far, (h, w, 3), or (b, h, w, 3) of several: the last, or the mean of those on the way."""

    def one(at):
        last = to_image(at.base, at.x, cfg, canvas)
        if not cfg.has("averaging"):
            return last
        return jnp.where(at.steps > 0, at.mean / jnp.maximum(1 - cfg.averaging**at.steps, 1e-6), last)

    return one(at) if at.value.ndim == 0 else jax.vmap(one)(at)


# ---------------------------------------------------------------------------------------------------------------------
# One step


def optimizer(cfg: Config) -> optax.GradientTransformationExtraArgs:
    if cfg.optimizer == "adam":
        return optax.with_extra_args_support(optax.adam(cfg.learning_rate))
    return optax.lbfgs(memory_size=cfg.memory, linesearch=line_search.zoom(max_steps=15))


def make_objective(
    network: Network, params: Params, targets: Targets, cfg: Config
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss, scaled, as a function of where the image began and of the variables."""

    def objective(base, x):
        terms = loss_terms(network, params, to_image(base, x, cfg, targets.canvas), targets, cfg)
        return LOSS_SCALE * functools.reduce(jnp.add, terms.values())

    return objective


def improve(objective: Callable[[jax.Array, jax.Array], jax.Array], at: Iterate, cfg: Config) -> Iterate:
    """One step of the optimizer: one evaluation for Adam, as many as the line search takes for L-BFGS."""
    solver: Any = optimizer(cfg)
    value_fn = functools.partial(objective, at.base)
    if cfg.optimizer == "adam":
        updates, opt_state = solver.update(at.gradient, at.opt_state, at.x)
        x = jnp.clip(at.x + updates, -1, 1)
        value, gradient = jax.value_and_grad(value_fn)(x)
        changed = {"evaluations": at.evaluations + 1}
    else:
        updates, opt_state = solver.update(
            at.gradient, at.opt_state, at.x, value=at.value, grad=at.gradient, value_fn=value_fn
        )
        pairs, *others, search = opt_state
        moved = (search.info.decrease_error <= 0) & (search.value < at.value) & jnp.isfinite(search.grad).all()
        # Forgetting is to count pairs as nothing; the pairs themselves, most of the memory, need not be touched.
        pairs = pairs._replace(
            count=jnp.where(moved, pairs.count, 0), weights_memory=jnp.where(moved, pairs.weights_memory, 0)
        )
        opt_state = (pairs, *others, search)
        x = jnp.where(moved, at.x + updates, at.x)
        value, gradient = jnp.where(moved, search.value, at.value), jnp.where(moved, search.grad, at.gradient)
        changed = {
            "evaluations": at.evaluations + search.info.num_linesearch_steps.astype(jnp.int32),
            "resets": at.resets + ~moved,
            "stuck": jnp.where(moved, 0, at.stuck + 1),
        }
    return dataclasses.replace(
        at, x=x, value=value, gradient=gradient, opt_state=opt_state, steps=at.steps + 1, **changed
    )


def step(network: Network, params: Params, targets: Targets, at: Iterate, cfg: Config) -> Iterate:
    """`improve` by the loss of one image, and the running mean of the images on the way."""
    at = improve(make_objective(network, params, targets, cfg), at, cfg)
    if cfg.has("averaging"):
        image = to_image(at.base, at.x, cfg, targets.canvas)
        at = dataclasses.replace(at, mean=cfg.averaging * at.mean + (1 - cfg.averaging) * image)
    return at


# ---------------------------------------------------------------------------------------------------------------------
# On the devices


@functools.partial(compiled.soon, static_argnames=("network", "mesh"))
def evaluate(
    network: Network, params: Params, targets: Targets, image: jax.Array, cfg: Config, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The loss of an image (h, w, 3), scaled, its gradient with respect to the variables there, and its terms.

    Of several images (b, h, w, 3) with as many targets all have a leading axis. mesh: devices among which they are
    dealt out, on an axis "pictures".
    """

    def one(targets, image):
        base, x = variables(image, cfg)

        def objective(x):
            terms = loss_terms(network, params, to_image(base, x, cfg, targets.canvas), targets, cfg)
            return LOSS_SCALE * functools.reduce(jnp.add, terms.values()), terms

        (value, terms), gradient = jax.value_and_grad(objective, has_aux=True)(x)
        return value, gradient, terms

    return one(targets, image) if image.ndim == 3 else _by_pictures(jax.vmap(one), mesh)(targets, image)


def begin(image: jax.Array, cfg: Config) -> Iterate:
    """The first iterate of an image (h, w, 3), whose loss and gradient are not known yet."""
    base, x = variables(image, cfg)
    zero = jnp.zeros((), jnp.int32)
    mean = jnp.zeros_like(image) if cfg.has("averaging") else jnp.zeros(0)
    # Types as they will be after a step, or that would be compiled twice: optax begins with numbers of no fixed type.
    opt_state = jax.tree.map(lambda x: lax.convert_element_type(x, x.dtype), optimizer(cfg).init(x))
    return Iterate(base, x, mean, jnp.zeros((), x.dtype), jnp.zeros_like(x), opt_state, zero, zero, zero, zero)


@functools.partial(compiled.soon, static_argnames="canvas")
def start(
    image: jax.Array,
    value: jax.Array,
    gradient: jax.Array,
    cfg: Config,
    before: Iterate | None = None,
    canvas: Canvas | None = None,
) -> Iterate:
    """The first iterate of an image (h, w, 3), or of several (b, h, w, 3), with its loss and gradient by `evaluate`.

    before: where smaller ones ended, from which Adam takes its moments. canvas: whose devices are to share the rows.
    """

    def one(image, value, gradient, before):
        at = begin(image, cfg)
        at = dataclasses.replace(at, value=value, gradient=gradient, evaluations=at.evaluations + 1)
        if before is None or cfg.optimizer != "adam":
            return at
        # A pixel's derivative is the smaller the more pixels there are.
        ratio = before.x.size / image.size
        adam, *others = before.opt_state
        mu = ratio * jax.image.resize(adam.mu, image.shape, "linear")
        nu = ratio**2 * jax.image.resize(adam.nu, image.shape, "linear")
        return dataclasses.replace(at, opt_state=(adam._replace(mu=mu, nu=nu), *others))

    arguments = (image, value, gradient, before)
    at = one(*arguments) if image.ndim == 3 else jax.vmap(one)(*arguments)
    return at if canvas is None else canvas.share(at)


@functools.partial(compiled.soon, donate_argnames="at")
def revalued(at: Iterate, value: jax.Array, gradient: jax.Array, cfg: Config) -> Iterate:
    """The same images under another loss, by `evaluate`: what L-BFGS has learnt of the old one is forgotten."""
    at = dataclasses.replace(at, value=value, gradient=gradient, stuck=jnp.zeros_like(at.stuck))
    if cfg.optimizer == "adam":
        return at
    pairs, *others = at.opt_state
    pairs = pairs._replace(count=jnp.zeros_like(pairs.count), weights_memory=jnp.zeros_like(pairs.weights_memory))
    return dataclasses.replace(at, opt_state=(pairs, *others))


@functools.partial(compiled.soon, static_argnames=("network", "mesh", "rows"), donate_argnames="at")
def advance(
    network: Network,
    params: Params,
    targets: Targets,
    at: Iterate,
    until: jax.Array,
    cfg: Config,
    mesh: Mesh | None = None,
    rows: int = 64,
) -> tuple[Iterate, jax.Array, jax.Array]:
    """Steps until at least `until` evaluations are done, `rows` steps at most, or nothing can be gained any more.

    Several images (see `evaluate`) are worked on until the last is done. Also returns the evaluations done after each
    step, 0 where there was none, and the loss, (rows,) or (b, rows) both.
    """

    def loop(targets, at, until):
        return _until(functools.partial(step, network, params, cfg=cfg), targets, at, until, cfg, rows)

    return loop(targets, at, until) if at.value.ndim == 0 else _by_pictures(loop, mesh)(targets, at, until)


def _until(
    step: Callable[[Targets, Iterate], Iterate], targets: Targets, at: Iterate, until: jax.Array, cfg: Config, rows: int
) -> tuple[Iterate, jax.Array, jax.Array]:
    """The loop of `advance` on one device, for one image or several."""

    def unfinished(at):
        return (at.evaluations < until) & (at.stuck < 2)

    def unless_done(pair):
        return lax.cond(unfinished(pair[1]), step, lambda targets, at: at, *pair)

    def step_all(at):
        if at.value.ndim == 0:
            return step(targets, at)
        if cfg.optimizer == "adam":
            return jax.vmap(step)(targets, at)
        # Pictures of one device in turn: side by side every branch of the line search is computed for all of them,
        # which takes six times as long, and none could stop before the last.
        return lax.map(unless_done, (targets, at))

    def more(carry):
        i, at, _, _ = carry
        return (i < rows) & jnp.any(unfinished(at))

    def logged(carry):
        i, before, evaluations, values = carry
        at = step_all(before)
        done = jnp.where(at.evaluations > before.evaluations, at.evaluations, 0)  # some may wait for the others
        return i + 1, at, evaluations.at[..., i].set(done), values.at[..., i].set(at.value / LOSS_SCALE)

    empty = jnp.zeros((*at.value.shape, rows), jnp.int32), jnp.zeros((*at.value.shape, rows), at.value.dtype)
    return lax.while_loop(more, logged, (0, at, *empty))[1:]


def _by_pictures(function: Callable, mesh: Mesh | None) -> Callable:
    """Each device works on its share of the pictures, at its own pace; arguments without axes are everyone's."""
    if mesh is None:
        return function

    def spec(x):
        return PartitionSpec("pictures") if jnp.ndim(x) else PartitionSpec()

    def shared(*args):
        specs = jax.tree.map(spec, args)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("pictures"), check_vma=False)(
            *args
        )

    return shared
