"""Where a discriminator looks: which pixels its logit depends on, and how well maps of that stand a test.

Maps are pure functions of a function from images to logits; `sections` computes them for a run, draws and words them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.look.explain.sections import FAKE, PLAIN, REAL, Picture, Section, figure, show
from ganstyle_jax.look.explain.subject import Settings, Subject
from ganstyle_jax.nn import compiled

Logit = Callable[[jax.Array], jax.Array]  # images (b, h, w, c) to logits (b,), each of its own image alone
Judge = Callable[[Any, jax.Array], jax.Array]  # a state and images to logits

EACH = 4  # pictures of either kind whose maps are shown
TESTED = 64  # pictures whose pixels are replaced
RANKED = 256  # of either kind, told apart by their logits
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the pixels that are replaced

# ---------------------------------------------------------------------------------------------------------------------
# What is computed


def input_gradient(logit: Logit, pictures: jax.Array) -> jax.Array:
    """d logit / d pixel, (b, h, w, c) -> (b, h, w, c) (Simonyan et al. 2014, arXiv:1312.6034, section 3)."""
    return jax.grad(lambda x: logit(x).sum())(pictures)


def smooth_gradient(
    logit: Logit, pictures: jax.Array, key: jax.Array, noise: float = 0.2, draws: int = 64
) -> jax.Array:
    """The gradient, averaged over noisy copies (SmoothGrad: Smilkov et al. 2017, arXiv:1706.03825, section 3).

    noise: standard deviation, of the range of each picture's values; the paper advises 0.1 to 0.2.
    """
    spread = noise * (pictures.max((1, 2, 3), keepdims=True) - pictures.min((1, 2, 3), keepdims=True))

    def add(i, total):
        drawn = jax.random.normal(jax.random.fold_in(key, i), pictures.shape, pictures.dtype)
        return total + input_gradient(logit, pictures + spread * drawn)

    return jax.lax.fori_loop(0, draws, add, jnp.zeros_like(pictures)) / draws


def integrated_gradients(logit: Logit, pictures: jax.Array, baseline: jax.Array, steps: int = 64) -> jax.Array:
    """(x - baseline) times the mean gradient on the straight way to x (Sundararajan et al. 2017, arXiv:1703.01365).

    (b, h, w, c) and (h, w, c) -> (b, h, w, c), equation 1 by the midpoint rule. Sums to logit(x) - logit(baseline), but
    for what so many steps leave.
    """

    def add(i, total):
        return total + input_gradient(logit, baseline + (i + 0.5) / steps * (pictures - baseline))

    mean = jax.lax.fori_loop(0, steps, add, jnp.zeros_like(pictures)) / steps
    return (pictures - baseline) * mean


def strength(attribution: jax.Array | np.ndarray) -> np.ndarray:
    """One number for each pixel: the largest of its channels' absolute values, (b, h, w, c) -> (b, h, w)."""
    return np.abs(np.asarray(attribution)).max(-1)


def replace_strongest(
    logit: Logit, pictures: np.ndarray, order_by: np.ndarray, baseline: np.ndarray, shares: tuple[float, ...]
) -> np.ndarray:
    """Logits (len(shares), b) when each share of the pixels, those of largest `order_by` (b, h, w) first, is replaced.

    By the baseline (h, w, c); the deletion test of Petsiuk et al. 2018 (arXiv:1806.07421), of logits.
    """
    b, h, w, _ = pictures.shape
    rank = np.argsort(np.argsort(-order_by.reshape(b, -1), axis=1, kind="stable"), axis=1).reshape(b, h, w, 1)
    found = [logit(jnp.asarray(np.where(rank < share * h * w, baseline, pictures))) for share in shares]
    return np.stack([np.asarray(x) for x in found])


@dataclasses.dataclass(frozen=True)
class Attributions:
    """What one discriminator makes of b pictures (h, w, c): maps are (b, h, w, c)."""

    logits: np.ndarray  # (b,)
    at_baseline: np.ndarray  # () logit of the baseline
    gradient: np.ndarray
    smooth: np.ndarray
    integrated: np.ndarray

    @property
    def gap(self) -> float:
        """By how much integrated gradients miss the differences that they are to share out, at most."""
        return float(np.abs(self.integrated.sum((1, 2, 3)) - (self.logits - self.at_baseline)).max())


def attributions(
    judge: Judge, states: Sequence[Any], pictures: np.ndarray, baseline: np.ndarray, key: jax.Array
) -> list[Attributions]:
    """Of each state's discriminator, (b, h, w, c) and the baseline (h, w, c): compiled once for all of them."""

    @jax.jit
    def attribute(state, pictures, baseline):
        def logit(x):
            return judge(state, x)

        maps = {
            "gradient": input_gradient(logit, pictures),
            "smooth": smooth_gradient(logit, pictures, key),
            "integrated": integrated_gradients(logit, pictures, baseline),
        }
        return {"logits": logit(pictures), "at_baseline": logit(baseline[None])[0]} | maps

    found = [jax.tree.map(np.asarray, attribute(state, pictures, baseline)) for state in states]
    return [Attributions(**of) for of in found]


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """How far maps (n, h, w) and (n, h, w) are alike: the mean correlation of their pairs, 0 where one is flat."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    return float(np.mean(np.nan_to_num(found)))


def ordered_share(real: np.ndarray, fake: np.ndarray) -> float:
    """The share of pairs that logits (n,) and (m,) put in order, ties by half (Mann & Whitney 1947)."""
    return float(np.mean(real[:, None] > fake) + np.mean(real[:, None] == fake) / 2)


def deletion_curves(
    logit: Logit, pictures: np.ndarray, baseline: np.ndarray, key: jax.Array, seed: int
) -> dict[str, np.ndarray]:
    """The mean logit by SHARES as the pixels that each map calls strongest are replaced, and pixels drawn by lot."""

    @jax.jit
    def orders(x):
        smooth, integrated = smooth_gradient(logit, x, key), integrated_gradients(logit, x, jnp.asarray(baseline))
        return input_gradient(logit, x), smooth, integrated

    gradient, smooth, integrated = orders(jnp.asarray(pictures))
    ways = {
        "gradient": strength(gradient),
        "SmoothGrad": strength(smooth),
        "integrated": np.asarray(integrated).sum(-1),
        "drawn by lot": np.random.default_rng(seed).random(pictures.shape[:3]),
    }
    return {name: replace_strongest(logit, pictures, order, baseline, SHARES).mean(1) for name, order in ways.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


def draw_maps(file: Path, pictures: np.ndarray, real: int, found: Attributions, untrained: Attributions) -> None:
    """A row for each picture, of which the first `real` are real ones."""
    maps = [
        ("gradient", strength(found.gradient)),
        ("SmoothGrad", strength(found.smooth)),
        ("integrated", found.integrated.sum(-1)),
        ("untrained", strength(untrained.smooth)),
    ]
    with figure(file, len(pictures), 5, 1.18 * len(pictures) + 0.35) as (_, axes):
        for i, picture in enumerate(pictures):
            kind, colour = ("real", REAL) if i < real else ("made up", FAKE)
            show(axes[i, 0], picture, "picture" if i == 0 else "")
            axes[i, 0].set_ylabel(f"{kind}\nlogit {found.logits[i]:+.1f}", color=colour)
            for axis, (name, values) in zip(axes[i, 1:], maps, strict=True):
                most = np.quantile(np.abs(values[i]), 0.995)
                signed = {"cmap": "RdBu_r", "vmin": -most} if name == "integrated" else {"cmap": "magma", "vmin": 0}
                show(axis, values[i], name if i == 0 else "", vmax=most, **signed)


def draw_deletion(file: Path, curves: dict[str, np.ndarray]) -> None:
    lines = {"gradient": ("--", "#444444"), "SmoothGrad": ("-.", REAL), "integrated": ("-", FAKE)}
    with figure(file, 1, 1, 3.4) as (_, axes):
        axis, x = axes[0, 0], 100 * np.array(SHARES)
        for name, curve in curves.items():
            line, colour = lines.get(name, (":", PLAIN))
            axis.plot(x, curve, line, color=colour, label=name, linewidth=2, marker=".")
        axis.set_xlabel("pixels replaced by those of the mean picture, %")
        axis.set_ylabel("mean logit")
        axis.legend(frameon=False)


# ---------------------------------------------------------------------------------------------------------------------
# What is said


def sections(subject: Subject, out: Path, settings: Settings) -> list[Section]:
    """Two sections, or one that says that the method has no discriminator to show."""
    title, run = "Where the discriminator looks", subject.run
    if not run.method.has("discriminate"):
        text = "This method offers no function `discriminate(state, images, cfg)`, so that it is not shown."
        return [Section(title, text)]

    def judge(state: Any, images: jax.Array) -> jax.Array:
        return run.method.module.discriminate(state, images, run.cfg)

    fake = subject.make(EACH)
    real = fake[:0] if subject.real is None else subject.real[:EACH]
    baseline = (subject.real if subject.real is not None else fake).mean(0)
    key = jax.random.key(settings.seed)
    init = compiled.once(lambda key: run.method.init(key, run.cfg, run.constants))
    pictures, states = np.concatenate([real, fake]), [run.state, init(jax.random.fold_in(key, 1))]
    found, untrained = attributions(judge, states, pictures, baseline.astype(pictures.dtype), key)
    draw_maps(out / "saliency.png", pictures, len(real), found, untrained)
    logit = jax.jit(lambda x: judge(run.state, x))
    told = ""
    if subject.real is not None:
        kinds = subject.real[:RANKED], subject.make(RANKED)
        told = ranking_text(*(np.asarray(logit(jnp.asarray(kind))) for kind in kinds))
    alike = likeness(strength(found.smooth), strength(untrained.smooth))
    first = Section(title, maps_text(told, found.gap, alike), (Picture("saliency.png", MAPS_CAPTION),))
    tested = subject.real[:TESTED] if subject.real is not None else subject.make(TESTED)
    curves = deletion_curves(logit, tested, baseline, key, settings.seed)
    draw_deletion(out / "deletion.png", curves)
    kind = "real" if subject.real is not None else "made-up"
    caption = (
        f"The mean logit of {len(tested)} {kind} pictures as the pixels that each map calls strongest are replaced."
    )
    return [first, Section("Testing the maps", deletion_text(curves), (Picture("deletion.png", caption),))]


MAPS_CAPTION = (
    "Bright: a small change of this pixel changes the logit much. Red: what this pixel has, compared with the mean "
    "picture, speaks for real; blue: for made up. Last column: SmoothGrad of a discriminator that never trained."
)


def ranking_text(real: np.ndarray, fake: np.ndarray) -> str:
    return (
        f" (mean {real.mean():+.1f} of {len(real)} real pictures and {fake.mean():+.1f} of {len(fake)} made up; of "
        f"two, one of either kind, it puts the real one first in {ordered_share(real, fake):.0%} of the cases)"
    )


def maps_text(ranking: str, gap: float, alike: float) -> str:
    return (
        "The discriminator gives each picture one number, the logit, the greater the more it takes the picture for "
        f"real{ranking}. The gradient of the logit by every pixel says which pixels that "
        "number hangs on (Simonyan et al. 2014), SmoothGrad is its mean over 64 noisy copies (Smilkov et al. 2017), "
        "and integrated gradients share out the logit's whole difference from that of the mean picture among the "
        f"pixels (Sundararajan et al. 2017; their sums miss it by {gap:.2g} at most here, which 64 "
        "steps leave). A map may show edges of the picture rather than what was learned (Adebayo et al. 2018), hence "
        f"the last column: its maps correlate with the trained ones by {alike:.2f} on average, and the nearer to "
        "1, the less the maps say of the training. None of this says that a bright pixel is right or wrong, nor why "
        "it counts."
    )


def deletion_text(curves: dict[str, np.ndarray]) -> str:
    start, after = curves["gradient"][0], {name: curve[SHARES.index(0.1)] for name, curve in curves.items()}
    return (
        "The test of a map is to act on it (Petsiuk et al. 2018, here with the logit): where the tenth of the pixels "
        f"that it calls strongest is replaced by the mean picture's, the mean logit goes from {start:.1f} to "
        f"{after['gradient']:.1f} (gradient), {after['SmoothGrad']:.1f} (SmoothGrad) and {after['integrated']:.1f} "
        f"(integrated), and to {after['drawn by lot']:.1f} for a tenth drawn by lot. Gradients say how much a pixel "
        "matters for a small change and not for which side it speaks, so that only the integrated map need bring the "
        "logit down. A picture with pixels replaced is like none of the training, and part of each fall is due to "
        "that: compare the curves with each other rather than with zero."
    )
