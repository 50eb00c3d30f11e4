"""Style transfer by image optimisation (Gatys, Ecker & Bethge 2016, CVPR; arXiv:1508.06576).

    picture = stylize(jax.random.key(0), content, [style], Config(size=512), *weights.load("compact"))

The image itself is what is optimised: its features are to equal the content picture's (content loss), and the
correlations of its features, over all places, the style picture's (style loss).

Differs from the paper:
- every loss is divided by the mean square of its target, so that the weights mean the same at any size, at any layer
  and with any feature network;
- coarse to fine: a small image is optimised first, enlarged and optimised again, up to the full size, which carries
  large structures over and takes a fraction of the time (Gatys et al. 2017, arXiv:1611.07865, section 6);
- starts from the content picture by default;
- colours outside [-1, 1] are penalised, because to clip them at the end undoes more than the last evaluations gain;
- L-BFGS has a line search with the strong Wolfe conditions, and variables of several scales (`spread`), so that a step
  moves whole areas as readily as single pixels: that takes fewer evaluations than the pixels themselves;
- styles can be confined to regions by masks (Gatys et al. 2017, section 4) and compared as Gaussians instead of by Gram
  matrices;
- an image can be cut into tiles, or into rows on several devices (nn/tiles.py), and many can be made at once.

Read on in config.py (settings and sizes), targets.py (what is aimed for), losses.py and terms.py (how far an image is
from it), optimise.py (variables and optimizers) and state.py (where the work stands, to go on from there). This file
takes pictures from the smallest size to the last.
"""

import dataclasses
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax.control import Control, Done
from ganstyle_jax.features import vgg
from ganstyle_jax.features.vgg import Network, Params
from ganstyle_jax.io import images
from ganstyle_jax.nn import devices as devices_of
from ganstyle_jax.style.audience import Audience, Progress, Stepped, progress_of
from ganstyle_jax.style.config import (
    SCALES,
    STYLE_LAYERS,
    TURNED,
    Config,
    changes,
    fitted_shape,
    shapes_of,
    with_strength,
)
from ganstyle_jax.style.inputs import Job
from ganstyle_jax.style.losses import Moments, moments
from ganstyle_jax.style.optimise import (
    COARSENESS,
    LOSS_SCALE,
    Iterate,
    advance,
    evaluate,
    improve,
    make_objective,
    picture_of,
    revalued,
    spread,
    start,
    variables,
)
from ganstyle_jax.style.plan import PlanSettings, lower_step
from ganstyle_jax.style.state import State, StateError, arrays_of, state_of
from ganstyle_jax.style.targets import Targets, canvas_of, make_targets
from ganstyle_jax.style.terms import loss_terms

__all__ = [
    "COARSENESS",
    "LOSS_SCALE",
    "SCALES",
    "STYLE_LAYERS",
    "Config",
    "Iterate",
    "Job",
    "Moments",
    "PlanSettings",
    "Progress",
    "State",
    "StateError",
    "Stepped",
    "Targets",
    "advance",
    "arrays_of",
    "canvas_of",
    "evaluate",
    "first_image",
    "fitted_shape",
    "improve",
    "loss_terms",
    "lower_step",
    "make_objective",
    "make_targets",
    "moments",
    "picture_of",
    "shapes_of",
    "spread",
    "start",
    "states",
    "stylize",
    "stylize_many",
    "variables",
    "with_strength",
]


def stylize(
    key: jax.Array,
    content: np.ndarray,
    styles: Sequence[np.ndarray],
    cfg: Config,
    network: Network,
    params: Params,
    style_weights: Sequence[float] | None = None,
    init_image: np.ndarray | None = None,
    callback: Callable[[Progress], None] | None = None,
    content_masks: Sequence[np.ndarray] | None = None,
    style_masks: Sequence[np.ndarray] | None = None,
    devices: Sequence[Any] | None = None,
    detailed: bool = False,
    control: Control | None = None,
    tell_every: Sequence[int] = (),
    previous: np.ndarray | None = None,
    trusted: np.ndarray | None = None,
    style_layers: Sequence[str | Sequence[str]] | None = None,
    state: Mapping[str, np.ndarray] | None = None,
    keep: Callable[[State], None] | None = None,
    turned: bool = False,
    opaque: np.ndarray | None = None,
) -> np.ndarray:
    """The content picture in the styles' manner, (h, w, 3) float32 in [-1, 1] with a longer side of `cfg.size`.

    For the pictures, weights and masks see `Job`. callback: called about once a second; an exception in it ends the
    optimisation. devices: to share the picture's rows. detailed: the callback is told of the present terms every time,
    for one more evaluation each. control: pauses and stops it between two dispatches, from any thread, and hears of
    `Stepped`, `Pictures` (1, h, w, 3), `Advanced` and at the end `Done`; stopped, the picture is returned as it is by
    then, at the full size. tell_every: callback and control are also told as soon as the evaluations, of all sizes,
    pass a multiple of one of these, which does not depend on the clock. keep: is given every `State`, at the latest
    about every second. state: `arrays_of` one of the same work, to go on from there, bit for bit. turned: that it was
    reached with other weights or rates (`config.TURNED`).
    Raises ValueError for layers that the network lacks, pictures too small for them and what `Job` refuses.
    """
    job = Job(
        *(content, styles, style_weights, content_masks, style_masks, init_image, previous, trusted, style_layers),
        opaque=opaque,
    )
    mesh = Mesh(np.asarray(devices), ("rows",)) if devices is not None and len(devices) > 1 else None
    tell = None if callback is None else lambda progress: callback(progress[0])
    audience = Audience(1, tell, control or Control(), detailed, tuple(tell_every), keep, turned)
    making = _making([job], cfg, network, params, rows=mesh)
    return _stylize(key, making, audience, None if state is None else making.restored(state))[0]


def stylize_many(
    key: jax.Array,
    jobs: Sequence[Job],
    cfg: Config,
    network: Network,
    params: Params,
    callback: Callable[[list[Progress]], None] | None = None,
    devices: Sequence[Any] | None = None,
    control: Control | None = None,
    tell_every: Sequence[int] = (),
) -> list[np.ndarray]:
    """As `stylize` for many pictures in one program, each what it would be by itself.

    All contents must come to the same shape, and all jobs or none have content masks, for as many styles, a previous
    frame, and `opaque`.
    devices: among which the pictures are dealt out. callback and control: told of all pictures at once.
    """
    if len({shapes_of(job.content.shape, cfg, network)[-1] for job in jobs}) > 1:
        raise ValueError("pictures that are made together must have the same shape")
    if len({None if job.content_masks is None else len(job.content_masks) for job in jobs}) > 1:
        raise ValueError("pictures that are made together must all have as many content masks")
    if len({job.opaque is None for job in jobs}) > 1:
        raise ValueError("pictures that are made together must all be opaque, or none")
    if len({job.previous is None for job in jobs}) > 1:
        raise ValueError("pictures that are made together must all have a previous frame, or none of them")
    mesh = Mesh(np.asarray(devices), ("pictures",)) if devices is not None and len(devices) > 1 else None
    # Every device has as many pictures; those that fill up are made in vain.
    filled = [*jobs, *[jobs[-1]] * (-len(jobs) % (mesh.size if mesh else 1))]
    audience = Audience(len(jobs), callback, control or Control(), every=tuple(tell_every))
    return _stylize(key, _making(filled, cfg, network, params, pictures=mesh), audience)[: len(jobs)]


def states(
    key: jax.Array,
    jobs: Sequence[Job],
    cfg: Config,
    network: Network,
    params: Params,
    state: Mapping[str, np.ndarray] | None = None,
) -> Generator[State, Config | None, None]:
    """The work of `stylize_many` on one device, step by step: where it stands after each dispatch of about a second.

        work = states(key, [job], cfg, network, params)
        for state in work:
            ...                           # `arrays_of(state)` is what `state` takes, to go on from there, bit for bit
            work.send(other_cfg)          # go on with other weights or rates, which compiles nothing

    The last state is that of the finished pictures. Raises ValueError as `stylize` does, and for a configuration that
    differs in more than `config.TURNED`.
    """
    making = _making(jobs, cfg, network, params)
    audience = Audience(len(jobs), lambda progress: None, Control())
    return _states(key, making, audience, None if state is None else making.restored(state))


# ---------------------------------------------------------------------------------------------------------------------
# From coarse to fine


@dataclasses.dataclass(frozen=True)
class _Making:
    """Pictures that are made together, and by what."""

    jobs: Sequence[Job]
    cfg: Config
    network: Network
    params: Params  # as they are laid out for the network
    rows: Mesh | None  # devices that share the rows of the only picture
    pictures: Mesh | None  # devices among which the pictures are dealt out

    def stack(self, trees: Sequence[Any]) -> Any:
        """One axis for pictures; none for a picture by itself, with which the compiler does better."""
        if len(self.jobs) == 1 and self.pictures is None:
            return trees[0]
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(h, w) of the images from coarse to fine."""
        return shapes_of(self.jobs[0].content.shape, self.cfg, self.network)

    def pictures_of(self, state: State) -> list[np.ndarray]:
        """As they are by then, at their present size."""
        shape = self.shapes[state.size]
        canvas = canvas_of(shape, self.network, self.cfg, self.rows)
        return list(canvas.crop(picture_of(state.at, self.cfg, canvas)).reshape(-1, *shape, 3))

    def turned(self, cfg: Config) -> Config:
        """The configuration to go on with. Raises ValueError where it is other work, not other numbers in it."""
        if changed := [name for name in changes(self.cfg, cfg) if name not in TURNED]:
            raise ValueError(f"only {', '.join(TURNED)} can be turned while it runs, not {', '.join(changed)}")
        return cfg

    def restored(self, arrays: Mapping[str, np.ndarray]) -> State:
        together = None if len(self.jobs) == 1 and self.pictures is None else len(self.jobs)
        return state_of(arrays, self.jobs[0].content.shape, self.cfg, self.network, together, self.rows)

    def agree(self, values: Callable[[], list[int]]) -> list[int]:
        """The largest of each process's values, where processes share the rows of a picture."""
        return values() if self.rows is None else devices_of.agree(values, self.rows)()


def _making(
    jobs: Sequence[Job],
    cfg: Config,
    network: Network,
    params: Params,
    rows: Mesh | None = None,
    pictures: Mesh | None = None,
) -> _Making:
    network.check(cfg.layers)
    if rows is None:
        params = vgg.prepare(network, params)
    else:  # of plain convolutions XLA exchanges the borders without gathering all of them
        everywhere = NamedSharding(rows, PartitionSpec())
        params = jax.tree.map(lambda x: devices_of.put(x, everywhere), params)
    return _Making(jobs, cfg, network, params, rows, pictures)


def _stylize(key: jax.Array, making: _Making, audience: Audience, state: State | None = None) -> list[np.ndarray]:
    """The pictures, and word of them to whoever listens, from the beginning or from a state on."""
    cfg, shapes, control = making.cfg, making.shapes, audience.control
    steps = [cfg.steps_at(max(shape)) for shape in shapes]
    work = np.cumsum([0.0] + [count * float(np.prod(shape)) for count, shape in zip(steps, shapes, strict=True)])
    stopped, anybody = _stopped(making, control), bool(making.agree(lambda: [int(audience.anybody)])[0])
    for state in () if stopped else _states(key, making, audience, state):  # noqa: B020, the last one is what is made
        wanted = steps[state.size]
        done = _done(state.at, wanted)
        if anybody and state.log is not None:
            share = (work[state.size] + np.diff(work)[state.size] * min(1, done / wanted)) / work[-1]
            progress = progress_of(state, making.pictures_of(state), float(share))
            audience.tell(progress, state.before + done, sum(steps))
        if audience.keep is not None:
            audience.keep(state)
        if state.size == len(shapes) - 1 and done >= wanted:
            break
        if stopped := _stopped(making, control):
            if audience.keep is not None:  # who keeps it may not have known yet
                audience.keep(state)
            break
    made: list[Any] = [job.init_image for job in making.jobs] if state is None else making.pictures_of(state)
    if stopped:
        made = [_as_it_is(key, making, job, image, shapes[-1]) for job, image in zip(making.jobs, made, strict=True)]
    control.tell(Done(0 if state is None else state.before + _done(state.at, steps[state.size]), stopped))
    return [np.clip(image, -1, 1) for image in made]


def _states(
    key: jax.Array, making: _Making, audience: Audience, state: State | None = None
) -> Generator[State, Config | None, None]:
    """At the beginning of each size, and after each dispatch of about a second. See `states`."""
    cfg, network, params, mesh = making.cfg, making.network, making.params, making.pictures
    anybody = bool(making.agree(lambda: [int(audience.anybody)])[0])  # all processes must do the same
    made: list[Any] = [job.init_image for job in making.jobs]
    at, before, turned = None, 0, audience.turned
    for size, shape in list(enumerate(making.shapes))[0 if state is None else state.size :]:
        targets, first = _problem(key, making, made, shape)
        if state is None or state.size != size:
            # Moments of an array that is larger than its image lie elsewhere in it.
            # So do enlarged ones of a picture that repeats: they would have a seam.
            alike = targets.canvas.padded is None and not cfg.tileable
            smaller = at if cfg.optimizer == "adam" and alike else None
            value, gradient, terms = evaluate(network, params, targets, first, cfg, mesh)
            at = start(first, value, gradient, cfg, smaller, targets.canvas)
            state = State(at, terms, np.array(at.evaluations), size=size, before=before)  # a copy: it is donated
        before, pace = state.before, 4  # evaluations in a dispatch
        while True:
            asked = yield state
            if asked is not None or turned:
                cfg, turned = making.turned(asked or cfg), False
                value, gradient, terms = evaluate(network, params, targets, _last(state.at, cfg, targets), cfg, mesh)
                at = revalued(state.at, value, gradient, cfg)
                state = dataclasses.replace(state, at=at, terms=terms, terms_at=np.array(at.evaluations))
            wanted = cfg.steps_at(max(shape))
            if (done := _done(state.at, wanted)) >= wanted:
                break
            then = time.perf_counter()
            until = np.int32(min(done + pace, wanted, audience.due(before + done) - before))
            at, *log = advance(network, params, targets, state.at, until, cfg, mesh)
            paid = _done(at, wanted) - done
            pace = max(1, min(64, int(paid / (time.perf_counter() - then))))
            # The slowest process' pace is that of all.
            pace = -making.agree(lambda pace=pace: [-pace])[0]
            terms, terms_at = state.terms, state.terms_at
            if anybody and (done + paid >= wanted or audience.detailed):
                image = picture_of(at, cfg, targets.canvas)
                terms, terms_at = evaluate(network, params, targets, image, cfg, mesh)[2], np.array(at.evaluations)
            state = State(at, terms, terms_at, size=size, before=before, log=(log[0], log[1]))
        at, made, before = state.at, making.pictures_of(state), before + _done(state.at, wanted)


def _last(at: Iterate, cfg: Config, targets: Targets) -> jax.Array:
    """The images where the optimizer stands, of which a loss is to be known."""
    return picture_of(at, dataclasses.replace(cfg, averaging=0.0), targets.canvas)


def _problem(
    key: jax.Array, making: _Making, made: Sequence[np.ndarray | None], shape: tuple[int, int]
) -> tuple[Targets, jax.Array]:
    """What is aimed for at a size, and the images that are begun with there.

    made: the pictures by now, at whatever size; None before the first.
    """
    cfg, network, targets, first = making.cfg, making.network, [], []
    for job, image in zip(making.jobs, made, strict=True):
        content, styles = resized(job, shape, cfg, network.smallest_side(cfg.layers))
        more: dict[str, Any] = held(job, shape) | {"mesh": making.rows, "style_layers": job.style_layers}
        more["opaque"] = job.opaque
        masks = (job.style_weights, job.content_masks, job.style_masks)
        targets.append(make_targets(network, making.params, content, styles, cfg, *masks, **more))
        if image is None:
            image = first_image(key, content, styles, job, cfg)
        first.append(targets[-1].canvas.put(images.resize(image, shape, cfg.tileable)))
    return making.stack(targets), making.stack(first)


def _as_it_is(
    key: jax.Array, making: _Making, job: Job, image: np.ndarray | None, shape: tuple[int, int]
) -> np.ndarray:
    """A picture that was stopped, at its full size."""
    if image is not None:
        return images.resize(image, shape, making.cfg.tileable)
    content, styles = resized(job, shape, making.cfg, making.network.smallest_side(making.cfg.layers))
    return first_image(key, content, styles, job, making.cfg)


def _stopped(making: _Making, control: Control) -> bool:
    """Waits as long as a pause is asked for. Whether the work is to end."""
    while True:
        stopping, paused = making.agree(lambda: [int(control.stopping), int(control.paused)])
        if stopping or not paused:
            return bool(stopping)
        control.wait(1.0)  # other processes vote again and again


def _done(at: Iterate, wanted: int) -> int:
    """Evaluations of the picture that has the fewest; what can gain nothing more counts as finished."""
    return int(jnp.where(at.stuck < 2, at.evaluations, wanted).min())


def resized(job: Job, shape: tuple[int, int], cfg: Config, least: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The content and the styles as they are compared with an image of that shape."""
    styles = []
    for style in job.styles:
        height, width = fitted_shape(style.shape, max(shape) * cfg.style_scale)
        styles.append(images.resize(style, (max(height, least), max(width, least))))
    return images.resize(job.content, shape, cfg.tileable), styles


def held(job: Job, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """What an image of that shape is held to in time, if it is, for `make_targets`."""
    if job.previous is None:
        return {}
    found = {"previous": images.resize(job.previous, shape)}
    if job.trusted is not None:
        found["trusted"] = np.clip(images.resize(job.trusted[..., None], shape)[..., 0], 0, 1)
    return found


def first_image(key: jax.Array, content: np.ndarray, styles: Sequence[np.ndarray], job: Job, cfg: Config) -> np.ndarray:
    """What the optimisation begins with, by `cfg.init`."""
    if cfg.init == "content":
        return content
    noise = np.asarray(jax.random.normal(key, content.shape))
    if cfg.init == "noise":
        return np.clip(0.3 * noise, -1, 1)
    weights = np.ones(len(styles)) if job.style_weights is None else np.asarray(job.style_weights, float)
    colours = np.concatenate([style.reshape(-1, 3) for style in styles])
    share = np.repeat(weights / [style[..., 0].size for style in styles], [style[..., 0].size for style in styles])
    mean = np.average(colours, axis=0, weights=share)
    values, axes = np.linalg.eigh(np.cov(colours.T, aweights=share))
    return np.clip(mean + noise * np.sqrt(np.maximum(values, 0)) @ axes.T, -1, 1).astype(np.float32)
