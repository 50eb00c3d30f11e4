"""How a picture grows: the activations of a generator's hidden layers, for two requests."""

from pathlib import Path

import jax
import numpy as np

from ganstyle_jax.look.explain.sections import Picture, Section, figure, show
from ganstyle_jax.look.explain.subject import Subject

TITLE = "How a picture grows"


def sections(subject: Subject, out: Path, count: int = 2, channels: int = 5) -> list[Section]:
    if not subject.run.method.has("activations"):
        text = "This method offers no function `activations(variables, requests, cfg)`, so that it is not shown."
        return [Section(TITLE, text)]
    hidden, pictures = activations(subject, count), subject.make(count)
    shown = []
    for j in range(len(pictures)):
        file = f"growth-{j + 1}.png"
        draw(out / file, {name: values[j] for name, values in hidden.items()}, pictures[j], channels)
        shown.append(Picture(file, caption(j, channels)))
    return [Section(TITLE, text_of(hidden), tuple(shown))]


def activations(subject: Subject, count: int) -> dict[str, np.ndarray]:
    """Of the first requests, by hidden layer in their order: (count, h, w, channels)."""
    part = jax.tree.map(lambda x: x[:count], subject.requests)
    # Not compiled, because a dictionary that comes out of `jit` has forgotten its order.
    found = subject.run.method.module.activations(subject.variables, part, subject.run.cfg)
    return {name: np.asarray(x) for name, x in found.items()}


def strongest(values: np.ndarray, count: int) -> np.ndarray:
    """The channels of (h, w, channels) of the largest means, the largest first, (count,)."""
    return np.argsort(-values.mean((0, 1)), kind="stable")[:count]


def draw(file: Path, hidden: dict[str, np.ndarray], picture: np.ndarray, channels: int) -> None:
    """A row for each layer's (h, w, channels): the mean, and the strongest channels; the picture below."""
    with figure(file, len(hidden) + 1, channels + 1, 1.13 * (len(hidden) + 1) + 0.4) as (_, axes):
        for i, (name, values) in enumerate(hidden.items()):
            show(axes[i, 0], values.mean(-1), "mean of all" if i == 0 else "", cmap="viridis", vmin=0)
            axes[i, 0].set_ylabel(name)
            chosen = strongest(values, channels)
            for k, channel in enumerate(chosen):
                show(axes[i, k + 1], values[..., channel], f"#{channel}", cmap="viridis", vmin=0)
            for axis in axes[i, len(chosen) + 1 :]:
                axis.set_axis_off()
        for axis in axes[-1, 1:]:
            axis.set_axis_off()
        show(axes[-1, 0], picture)
        axes[-1, 0].set_ylabel("picture")


def caption(place: int, channels: int) -> str:
    return (
        f"Picture {place + 1}: each row is one hidden layer, its mean over all channels and the {channels} channels "
        "that are strongest for this picture (by number). Yellow is much, dark is nothing. Below: the picture."
    )


def text_of(hidden: dict[str, np.ndarray]) -> str:
    sizes = ", ".join(f"{name} ({x.shape[-1]} channels)" for name, x in hidden.items())
    return (
        f"The generator makes its picture in steps: {sizes}, then the colours. Each square is one "
        "channel's activations, computed by a single forward pass and scaled to its own largest value. Coarse layers "
        "say roughly where something is to be; edges and strokes come in the last ones. Stripes and chequers, where "
        "there are any, are how strided transposed convolutions overlap (Odena et al. 2016), and may reach the "
        "picture as a fine grid. Channels that light up together with a part of the picture need not cause it: that "
        "would take switching them off (Bau et al. 2019, GAN Dissection), which is not done here."
    )
