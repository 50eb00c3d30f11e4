"""`ganstyle restore`: damaged pictures in, restored pictures out, one after the other."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ganstyle_jax.control import Advanced, Control, Done, Metrics, Pictures, heeding_signals
from ganstyle_jax.io.files import UserError, gigabytes
from ganstyle_jax.loop import runs
from ganstyle_jax.loop.devices import devices_or_sentence
from ganstyle_jax.restoration import keeping
from ganstyle_jax.restoration.journal import Journal
from ganstyle_jax.restoration.orders import Settings, plan
from ganstyle_jax.restoration.reading import Piece, hint, read
from ganstyle_jax.restore import deep_image_prior
from ganstyle_jax.restore.deep_image_prior import Config
from ganstyle_jax.style import memory

MOST_AT_ONCE = 50  # steps on the device, after which it is looked at what is wanted
PIXELS_AT_ONCE = 1 << 21  # on CPUs fewer: of so many pixels, times restarts


def run(
    images: Sequence[Path | str] | Path | str, cfg: Config, settings: Settings, control: Control | None = None
) -> list[Path]:
    """Restores each of these pictures, or of those in these folders, and returns the files written. Raises UserError.

    All that can be known to be wrong is found before the first picture is begun. control: pauses and stops it, and
    hears of it all. Stopped, the picture as it is by then is written beside the name that was asked for
    (`Order.stopped`), what was done is kept for `settings.resume`, and the rest is not begun. A signal stops it too,
    and then this ends in SystemExit with 128 and the signal's number, as shells have it.
    """
    control = Control() if control is None else control
    images = (images,) if isinstance(images, (str, Path)) else images
    cfg = completed(cfg)
    orders = plan(tuple(map(Path, images)), cfg, settings)
    devices_or_sentence()
    piece = None
    for order in orders:
        piece = read(order, cfg, settings)
        check_memory(piece, cfg)
        hint(piece, cfg)
    written, steps, stopped = [], 0, False
    with heeding_signals(control, "keeping what there is of the picture"), runs.precision_of(cfg):
        for order in orders:
            if len(orders) > 1:  # all of them at once may be too many
                piece = read(order, cfg, settings)
            assert piece is not None
            path, done, stopped = restore(piece, cfg, settings, control)
            written += [] if path is None else [path]
            steps += done
            if stopped:
                break
    if not stopped:
        for order in orders:
            order.state.unlink(missing_ok=True)
    control.tell(Done(steps, stopped))
    if stopped and control.signal:
        raise SystemExit(128 + control.signal)
    return written


def completed(cfg: Config) -> Config:
    """With the settings of its task where they are left open. UserError for what cannot be."""
    try:
        return deep_image_prior.preset(cfg.task, cfg.scale, cfg)
    except ValueError as error:
        raise UserError(str(error)) from None


def restore(piece: Piece, cfg: Config, settings: Settings, control: Control) -> tuple[Path | None, int, bool]:
    """One picture and its files: the picture's name, the steps that are done, and whether it was stopped before."""
    order, assets = piece.order, (piece.mask, piece.guide)
    keeper = keeping.Keeper(order.state, keeping.identity(piece, settings.seed, cfg))
    found = keeper.found() if settings.resume else None
    if found is not None and found.done and order.out.exists():
        print(f"{order.out}: was done before", file=sys.stderr)
        return order.out, 0, False
    wanted = piece.wanted
    state = deep_image_prior.init(jax.random.key(settings.seed), wanted, cfg, *assets)
    with Journal(piece, cfg, settings) as journal:
        if found is not None and not found.done:
            try:
                state = deep_image_prior.state_of(found.arrays, state)
            except (ValueError, KeyError, TypeError) as error:
                raise keeper.refusal(error) from error
            journal.begin(found.lines, found.seconds)
        else:
            journal.begin()
        at_once = steps_at_once(piece.shape, cfg)
        while not (done := deep_image_prior.stopped(state)):
            stopping, paused = control.stopping, control.paused
            if journal.lines and (stopping or paused or keeper.due):
                keeper.keep(deep_image_prior.arrays_of(state), journal.lines, journal.seconds)
            if stopping:
                break
            if paused:
                control.wait()
                continue
            state, trace = deep_image_prior.advance(state, wanted, cfg, at_once, *assets)
            line = journal.note({name: np.asarray(values) for name, values in trace.items()}, state)
            if control.listeners and line:
                control.tell(Metrics(journal.step, {k: v for k, v in line.items() if isinstance(v, float)}))
                control.tell(Pictures(journal.step, journal.now(state)[None]))
                control.tell(Advanced(journal.step, journal.total))
        path = journal.write(state, not done)
        if done:
            keeper.keep({}, [], journal.seconds)
        return path, journal.step, not done


def check_memory(piece: Piece, cfg: Config) -> None:
    """UserError for a picture that is sure to need more memory than there is, which would end the program."""
    least, free = least_memory(piece.shape, cfg), memory.available(jax.local_devices()[:1])
    if least > free:
        height, width = piece.shape
        raise UserError(
            f"{piece.order.image}: to restore {width} x {height} pixels takes {gigabytes(least)} of memory at the "
            f"very least, and {gigabytes(free)} are free: make it smaller, or give fewer --channels or --stopping emv"
        )


def least_memory(shape: tuple[int, int], cfg: Config) -> int:
    """Bytes below which it cannot be: what convolutions give, which the gradient needs, and the window of pictures."""
    assert cfg.channels is not None
    up = 2 if cfg.pointwise else 1  # convolutions of a scale's own size; those on the way down have a quarter
    features = sum(channels * (up + 2 / 4) / 4**i for i, channels in enumerate(cfg.channels))
    if jax.default_backend() != "cpu":  # where networks are one after the other
        features *= cfg.restarts
    window = 3 * cfg.window * cfg.restarts if cfg.stopping == "wmv" else 0
    return round(shape[0] * shape[1] * (features + window) * (8 if cfg.dtype == "float64" else 4))


def steps_at_once(shape: tuple[int, int], cfg: Config) -> int:
    """How many steps are done between two looks at what is wanted, the same throughout."""
    if jax.default_backend() != "cpu":
        return MOST_AT_ONCE
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (shape[0] * shape[1] * cfg.restarts)))
