"""What a trained GAN has learned: where its discriminator looks, what its latents do, what it leaves out.

Saliency, principal directions and walks are pure functions of functions; `sections` draws them for a run. What a
method does not offer (`discriminate`, `first_layer`, `activations`) is left out, and the text says so.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ganstyle_jax import data, images, weights
from ganstyle_jax.data import CorruptImage
from ganstyle_jax.explain import maps
from ganstyle_jax.explain.sections import FAKE, PLAIN, REAL, Picture, Section, figure, show, thumbnails
from ganstyle_jax.files import UserError
from ganstyle_jax.runs import LoadedRun

Logit = Callable[[jax.Array], jax.Array]  # images (b, h, w, c) to logits (b,), each of its own image alone


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 400  # pictures of either kind on the maps
    labelled: int = 1000  # real pictures by which classes are told
    drawn: int = 2000  # made-up pictures whose classes are counted
    jacobians: int = 24  # latents over which the generator's Jacobian is averaged
    seed: int = 0  # of latents, noise and random directions


# ---------------------------------------------------------------------------------------------------------------------
# Which pixels the logit depends on


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


def strength(attribution: jax.Array) -> np.ndarray:
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


# ---------------------------------------------------------------------------------------------------------------------
# Which ways in latent space change the picture


def jacobian_gram(generate: Callable[[jax.Array], jax.Array], latents: jax.Array) -> jax.Array:
    """The mean of J^T J, (d, d), over latents (n, d), J being d picture / d latent.

    v^T J^T J v is how much the picture changes, in squared pixel values, for a small step v. generate: (1, d) to
    (1, ...), differentiable twice in reverse; J v is the derivative of u -> J^T u, which is linear, so that no rule for
    forward mode is needed.
    """
    basis = jnp.eye(latents.shape[1], dtype=latents.dtype)

    @jax.jit
    def of(z):
        picture, pull = jax.vjp(lambda z: generate(z[None])[0], z)
        _, push = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(picture))
        columns = jax.lax.map(lambda v: push(v)[0].reshape(-1), basis, batch_size=10)
        return jnp.matmul(columns, columns.T, precision="highest")

    total = jnp.zeros_like(basis)
    for z in tqdm(latents, "Jacobians of the generator", leave=False):
        total += of(z)
    return total / len(latents)


def principal_directions(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric (d, d) to its eigenvalues (d,), the largest first, and unit eigenvectors, the rows of (d, d)."""
    values, axes = np.linalg.eigh(np.asarray(gram, np.float64))
    return np.maximum(values[::-1], 0), maps.fix_signs(axes.T[::-1])


def sefa(first_layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `principal_directions` for a generator's first weights (d, features): SeFa (Shen & Zhou 2021, equation 5).

    The directions that the first linear map enlarges most, whatever comes after it.
    """
    weights = np.asarray(first_layer, np.float64)
    return principal_directions(weights @ weights.T)


def along(latents: np.ndarray, direction: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Latents (n, d) whose component along a unit vector is set to each value in turn, (n, len(values), d)."""
    rest = latents - (latents @ direction)[:, None] * direction
    return (rest[:, None] + np.asarray(values)[:, None] * direction).astype(latents.dtype)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Of the spaces that unit rows (k, d) span, the mean squared cosine of their angles: 1 if equal."""
    return float(np.sum((a @ b.T) ** 2) / len(a))


# ---------------------------------------------------------------------------------------------------------------------
# The sections of a run


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run and all that several sections need of it."""

    run: LoadedRun
    variables: Any  # what samples are drawn with
    real: np.ndarray | None  # (n, h, w, c) in [-1, 1]
    labels: np.ndarray | None  # (n,) of the real ones
    names: tuple[str, ...]  # of the classes
    absent: str  # why there are no real pictures

    def generate(self, latents: jax.Array) -> jax.Array:
        return self.run.method.sample(self.variables, latents, self.run.cfg)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """(n, d) to (n, h, w, c) float32, 64 at a time."""
        draw = jax.jit(lambda variables, z: self.run.method.sample(variables, z, self.run.cfg))
        parts = []
        for start in range(0, len(latents), 64):
            part = latents[start : start + 64]
            whole = np.resize(part, (64, *part.shape[1:]))  # one size, one program
            parts.append(np.asarray(draw(self.variables, whole), np.float32)[: len(part)])
        return np.concatenate(parts)


def sections(run: LoadedRun, source_name: str, out: Path, settings: Settings) -> list[Section]:
    """Draws all that this run's method offers into the folder. source_name: the data, as run.json names them."""
    if getattr(run.cfg, "batch_norm", None) == "batch":  # pictures would depend on each other, gradients as well
        run = dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, batch_norm="standing"))
    subject = prepare(run, source_name, settings)
    latents = np.asarray(
        run.method.latents(jax.random.key(settings.seed), max(settings.drawn, settings.count), run.cfg)
    )
    found = []
    if latents.ndim != 2:
        raise UserError(f"latents of shape {latents.shape} are not explained: (n, numbers) are")
    steps = [
        lambda: saliency_sections(subject, latents, out, settings),
        lambda: growth_sections(subject, latents, out),
        lambda: directions_sections(subject, latents, out, settings),
        lambda: map_sections(subject, latents, out, settings),
    ]
    for step in tqdm(steps, "explaining", leave=False):
        found += step()
    return found


def prepare(run: LoadedRun, source_name: str, settings: Settings) -> Subject:
    """Reads real pictures where the run's data are still there."""
    variables = jax.jit(run.method.generator, static_argnums=1)(run.state, run.cfg)
    try:
        source = data.open_source(source_name, run.cfg.image_size, run.cfg.channels, settings.seed)
    except UserError as error:
        return Subject(run, variables, None, None, (), str(error).rstrip("."))
    count = max(settings.labelled, settings.count)
    if source.size is None:
        order = np.arange(count)
    else:
        order = np.random.default_rng(settings.seed).permutation(source.size)[:count]
    real, labels = [], []
    for i in tqdm(order, "real pictures", leave=False):
        try:
            example = source[int(i)]
        except CorruptImage:
            continue
        real.append(example["image"])
        labels.append(int(example.get("label", 0)))
    if len(real) < 8:
        return Subject(run, variables, None, None, (), f"{source_name} holds {len(real)} pictures; 8 are needed")
    names = source.label_names if len(np.unique(labels)) > 1 else None
    return Subject(run, variables, np.stack(real), None if names is None else np.array(labels), names or (), "")


# --------------------------------------------------------------------------------------------------- the discriminator


def saliency_sections(subject: Subject, latents: np.ndarray, out: Path, settings: Settings) -> list[Section]:
    title = "Where the discriminator looks"
    run = subject.run
    judge = getattr(run.method, "discriminate", None)
    if judge is None:
        text = "This method offers no function `discriminate(state, images, cfg)`, so that it is not shown."
        return [Section(title, text)]

    def logit_of(state: Any) -> Logit:
        return lambda x: judge(state, x, run.cfg)

    each = 4
    fake = subject.decode(latents[:each])
    real = fake[:0] if subject.real is None else subject.real[:each]
    pictures = np.concatenate([real, fake])
    fine, key = pictures.dtype, jax.random.key(settings.seed)
    baseline = subject.real.mean(0) if subject.real is not None else fake.mean(0)

    @jax.jit
    def attribute(state, pictures, baseline):
        logit = logit_of(state)
        return {
            "logit": logit(pictures),
            "at baseline": logit(baseline[None])[0],
            "gradient": input_gradient(logit, pictures),
            "SmoothGrad": smooth_gradient(logit, pictures, key),
            "integrated": integrated_gradients(logit, pictures, baseline),
        }

    untrained = jax.jit(lambda key: run.method.init(key, run.cfg))(jax.random.fold_in(key, 1))
    found = jax.tree.map(np.asarray, attribute(run.state, pictures.astype(fine), baseline.astype(fine)))
    chance = jax.tree.map(np.asarray, attribute(untrained, pictures.astype(fine), baseline.astype(fine)))

    maps_ = [
        ("gradient", strength(found["gradient"])),
        ("SmoothGrad", strength(found["SmoothGrad"])),
        ("integrated", found["integrated"].sum(-1)),
        ("untrained", strength(chance["SmoothGrad"])),
    ]
    with figure(out / "saliency.png", len(pictures), 5, 1.18 * len(pictures) + 0.35) as (_, axes):
        for i, picture in enumerate(pictures):
            kind, colour = ("real", REAL) if i < len(real) else ("made up", FAKE)
            show(axes[i, 0], picture, "picture" if i == 0 else "")
            axes[i, 0].set_ylabel(f"{kind}\nlogit {found['logit'][i]:+.1f}", color=colour)
            for axis, (name, values) in zip(axes[i, 1:], maps_, strict=True):
                if name == "integrated":
                    most = np.quantile(np.abs(values[i]), 0.995)
                    show(axis, values[i], name if i == 0 else "", cmap="RdBu_r", vmin=-most, vmax=most)
                else:
                    most = np.quantile(values[i], 0.995)
                    show(axis, values[i], name if i == 0 else "", cmap="magma", vmin=0, vmax=most)
    caption = (
        "Bright: a small change of this pixel changes the logit much. Red: what this pixel has, compared with the mean "
        "picture, speaks for real; blue: for made up. Last column: SmoothGrad of a discriminator that never trained."
    )
    gaps = found["integrated"].sum((1, 2, 3)) - (found["logit"] - found["at baseline"])
    pairs = zip(maps_[1][1], maps_[3][1], strict=True)
    likeness = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])
    logit = jax.jit(logit_of(run.state))
    text = (
        "The discriminator gives each picture one number, the logit, the greater the more it takes the picture for "
        f"real{_ranking(subject, latents, logit)}. The gradient of the logit by every pixel says which pixels that "
        "number hangs on (Simonyan et al. 2014), SmoothGrad is its mean over 64 noisy copies (Smilkov et al. 2017), "
        "and integrated gradients share out the logit's whole difference from that of the mean picture among the "
        f"pixels (Sundararajan et al. 2017; their sums miss it by {np.abs(gaps).max():.2g} at most here, which 64 "
        "steps leave). A map may show edges of the picture rather than what was learned (Adebayo et al. 2018), hence "
        f"the last column: its maps correlate with the trained ones by {likeness:.2f} on average, and the nearer to "
        "1, the less the maps say of the training. None of this says that a bright pixel is right or wrong, nor why "
        "it counts."
    )
    return [
        Section(title, text, (Picture("saliency.png", caption),)),
        deletion_section(subject, latents, logit, baseline, out, settings),
    ]


def _ranking(subject: Subject, latents: np.ndarray, logit: Logit, count: int = 256) -> str:
    """How well the logit tells both kinds apart: the share of pairs that it puts in order (Mann & Whitney 1947)."""
    if subject.real is None:
        return ""
    real, fake = (np.asarray(logit(jnp.asarray(x))) for x in (subject.real[:count], subject.decode(latents[:count])))
    ordered = np.mean(real[:, None] > fake) + np.mean(real[:, None] == fake) / 2
    return (
        f" (mean {real.mean():+.1f} of {len(real)} real pictures and {fake.mean():+.1f} of {len(fake)} made up; of "
        f"two, one of either kind, it puts the real one first in {ordered:.0%} of the cases)"
    )


def deletion_section(
    subject: Subject, latents: np.ndarray, logit: Logit, baseline: np.ndarray, out: Path, settings: Settings
) -> Section:
    """How the logit falls when the pixels that a map calls strong are replaced, against pixels drawn by lot."""
    n, shares = 64, (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
    pictures = subject.real[:n] if subject.real is not None else subject.decode(latents[:n])
    key = jax.random.key(settings.seed)

    @jax.jit
    def orders(x):
        smooth, integrated = smooth_gradient(logit, x, key), integrated_gradients(logit, x, jnp.asarray(baseline))
        return input_gradient(logit, x), smooth, integrated

    gradient, smooth, integrated = orders(jnp.asarray(pictures))
    lot = np.random.default_rng(settings.seed).random(pictures.shape[:3])
    ways = {
        "gradient": (strength(gradient), "--", "#444444"),
        "SmoothGrad": (strength(smooth), "-.", REAL),
        "integrated": (np.asarray(integrated).sum(-1), "-", FAKE),
        "drawn by lot": (lot, ":", PLAIN),
    }
    curves = {}
    with figure(out / "deletion.png", 1, 1, 3.4) as (_, axes):
        for name, (order, line, colour) in ways.items():
            curves[name] = replace_strongest(logit, pictures, order, baseline, shares).mean(1)
            axes[0, 0].plot(
                100 * np.array(shares), curves[name], line, color=colour, label=name, linewidth=2, marker="."
            )
        axes[0, 0].set_xlabel("pixels replaced by those of the mean picture, %")
        axes[0, 0].set_ylabel("mean logit")
        axes[0, 0].legend(frameon=False)
    kind = "real" if subject.real is not None else "made-up"
    start, after = curves["gradient"][0], {name: curve[shares.index(0.1)] for name, curve in curves.items()}
    caption = (
        f"The mean logit of {len(pictures)} {kind} pictures as the pixels that each map calls strongest are replaced."
    )
    text = (
        "The test of a map is to act on it (Petsiuk et al. 2018, here with the logit): where the tenth of the pixels "
        f"that it calls strongest is replaced by the mean picture's, the mean logit goes from {start:.1f} to "
        f"{after['gradient']:.1f} (gradient), {after['SmoothGrad']:.1f} (SmoothGrad) and {after['integrated']:.1f} "
        f"(integrated), and to {after['drawn by lot']:.1f} for a tenth drawn by lot. Gradients say how much a pixel "
        "matters for a small change and not for which side it speaks, so that only the integrated map need bring the "
        "logit down. A picture with pixels replaced is like none of the training, and part of each fall is due to "
        "that: compare the curves with each other rather than with zero."
    )
    return Section("Testing the maps", text, (Picture("deletion.png", caption),))


# ------------------------------------------------------------------------------------------------------- the generator


def growth_sections(subject: Subject, latents: np.ndarray, out: Path, channels: int = 5) -> list[Section]:
    title, offered = "How a picture grows", getattr(subject.run.method, "activations", None)
    if offered is None:
        text = "This method offers no function `activations(generator, latents, cfg)`, so that it is not shown."
        return [Section(title, text)]
    z = latents[:2]
    # Not compiled, because a dictionary that comes out of `jit` has forgotten its order.
    hidden = {name: np.asarray(x) for name, x in offered(subject.variables, z, subject.run.cfg).items()}
    pictures = subject.decode(z)
    shown = []
    for j in range(len(z)):
        file = f"growth-{j + 1}.png"
        with figure(out / file, len(hidden) + 1, channels + 1, 1.13 * (len(hidden) + 1) + 0.4) as (_, axes):
            for i, (name, values) in enumerate(hidden.items()):
                one = values[j]
                show(axes[i, 0], one.mean(-1), "mean of all" if i == 0 else "", cmap="viridis", vmin=0)
                axes[i, 0].set_ylabel(name)
                for k, channel in enumerate(np.argsort(-one.mean((0, 1)), kind="stable")[:channels]):
                    show(axes[i, k + 1], one[..., channel], f"#{channel}", cmap="viridis", vmin=0)
            for k in range(channels + 1):
                axes[-1, k].set_axis_off()
            axes[-1, 0].set_axis_on()
            show(axes[-1, 0], pictures[j])
            axes[-1, 0].set_ylabel("picture")
        caption = (
            f"Latent {j + 1}: each row is one hidden layer, its mean over all channels and the {channels} channels "
            "that are strongest for this latent (by number). Yellow is much, dark is nothing. Below: the picture."
        )
        shown.append(Picture(file, caption))
    sizes = ", ".join(f"{name} ({x.shape[-1]} channels)" for name, x in hidden.items())
    text = (
        f"The generator makes a latent into a picture in steps: {sizes}, then the colours. Each square is one "
        "channel's activations, computed by a single forward pass and scaled to its own largest value. Coarse layers "
        "say roughly where something is to be; edges and strokes come in the last ones. Stripes and chequers, where "
        "there are any, are how strided transposed convolutions overlap (Odena et al. 2016), and may reach the "
        "picture as a fine grid. Channels that light up together with a part of the picture need not cause it: that "
        "would take switching them off (Bau et al. 2019, GAN Dissection), which is not done here."
    )
    return [Section(title, text, tuple(shown))]


def directions_sections(subject: Subject, latents: np.ndarray, out: Path, settings: Settings) -> list[Section]:
    cfg, method = subject.run.cfg, subject.run.method
    values, axes_ = principal_directions(
        np.asarray(jacobian_gram(subject.generate, jnp.asarray(latents[: settings.jacobians])))
    )
    found = {"jacobian": axes_}
    offered = getattr(method, "first_layer", None)
    if offered is not None:
        found["sefa"] = sefa(np.asarray(offered(subject.variables, cfg)))[1]
    rng = np.random.default_rng(settings.seed)
    lot = rng.normal(size=(16, latents.shape[1]))
    found["lot"] = lot / np.linalg.norm(lot, axis=1, keepdims=True)
    spread = latents.std()  # sigma, 1 for standard normal latents

    titles = {
        "jacobian": "direction {i} of the Jacobian",
        "sefa": "direction {i} of the first layer (SeFa)",
        "lot": "a direction drawn by lot",
    }
    captions = {
        "jacobian": "Walks along the directions that change the picture most, by the generator's Jacobian.",
        "sefa": "Walks along the directions that the first layer's weights enlarge most (SeFa).",
        "lot": "Walks along directions drawn by lot, for comparison.",
    }
    shown = min(3, latents.shape[1])  # directions
    walks, stops = latents[:3], np.linspace(-3, 3, 7)
    marks = [f"{stop:+.0f}σ" if stop else "0" for stop in stops]  # noqa: RUF001  (sigma is meant)
    pictures = []
    for name, directions in found.items():
        with figure(out / f"directions-{name}.png", shown, 1, 3.0 * shown) as (_, axes):
            for i in range(shown):
                frames = subject.decode(along(walks, directions[i], stops * spread).reshape(-1, latents.shape[1]))
                sheet = images.grid(frames, columns=len(stops), padding=1)
                show(axes[i, 0], sheet, titles[name].format(i=i + 1))
                side = frames.shape[1] + 1
                axes[i, 0].set_xticks([(k + 0.5) * side for k in range(len(stops))], marks)
                axes[i, 0].tick_params(length=0)
        pictures.append(Picture(f"directions-{name}.png", f"{captions[name]} Three latents each, from -3 to +3 sigma."))

    effect = {name: effects(subject, latents[:32], directions[:16], spread) for name, directions in found.items()}
    measures = {"in pixels": 0, "in features": 1}
    with figure(out / "directions.png", 3, 1, 8.0) as (_, axes):
        top = axes[0, 0]
        top.semilogy(np.arange(1, len(values) + 1), np.maximum(values / values.mean(), 1e-6), color=REAL, linewidth=2)
        top.axhline(1, color=PLAIN, linestyle=":")
        top.text(len(values), 1.15, "mean of all", ha="right", color=PLAIN)
        top.set_ylim(bottom=max(1e-4, values[-1] / values.mean() / 2))
        top.set_ylabel("change, small step")
        top.set_xlabel("direction of the Jacobian, all")
        for axis, (name, k) in zip(axes[1:, 0], measures.items(), strict=True):
            by_lot = effect["lot"][:, k]
            places = np.arange(1, len(effect["jacobian"]) + 1)
            band = [0.5, len(places) + 0.5], by_lot.min(), by_lot.max()
            axis.fill_between(*band, color=PLAIN, alpha=0.3, linewidth=0, label="drawn by lot")
            axis.plot(places, effect["jacobian"][:, k], "o-", color=REAL, label="Jacobian")
            if "sefa" in effect:
                axis.plot(places, effect["sefa"][:, k], "s--", color=FAKE, label="first layer (SeFa)")
            axis.set_ylim(bottom=0)
            axis.set_ylabel(f"change {name}")
        axes[1, 0].legend(frameon=False)
        axes[2, 0].set_xlabel("direction, the first 16")
    caption = (
        "How much the picture changes along each direction. Above: for a small step, over the mean direction. "
        "Middle: between the ends of walks from -3 to +3 sigma, root mean square over pixels (2 is black to white). "
        "Below: the same in the features of the compact network at relu3_1, over the features' own size. Grey: 16 "
        "directions by lot."
    )
    pictures.insert(0, Picture("directions.png", caption))
    ratio = {name: of[:3].mean(0) / effect["lot"].mean(0) for name, of in effect.items()}
    k = min(10, latents.shape[1])
    text = (
        f"Every latent is a point in a space of {latents.shape[1]} dimensions, most of which change little. J is the "
        f"derivative of the picture by the latent: the eigenvectors of the mean of JᵀJ over {settings.jacobians} "
        "latents are the directions in which a small step changes the pixels most. "
    )
    if "sefa" in found:
        text += (
            "SeFa (Shen & Zhou 2021) takes the eigenvectors of AAᵀ of the first layer's weights A instead, which "
            f"needs no picture at all; the first {k} of both span spaces with an overlap of "
            f"{overlap(found['jacobian'][:k], found['sefa'][:k]):.2f} (1: the same, {k / latents.shape[1]:.2f}: "
            "chance). "
        )
    beside = f"; along SeFa's {ratio['sefa'][0]:.1f} and {ratio['sefa'][1]:.1f} times" if "sefa" in ratio else ""
    text += (
        f"A walk along the first {shown} of the Jacobian changes the picture {ratio['jacobian'][0]:.1f} times as much "
        f"as one along directions drawn by lot in pixels and {ratio['jacobian'][1]:.1f} times in features, which the "
        f"Jacobian was not asked about{beside}. What such a direction means, one reads into it: it may change several "
        "things at once, and others for another latent."
    )
    return [Section("What single latent directions do", text, tuple(pictures))]


def effects(subject: Subject, latents: np.ndarray, directions: np.ndarray, spread: float) -> np.ndarray:
    """How far apart the ends of walks from -3 to 3 sigma are along each of k directions, (k, 2).

    Root mean square of the difference, first in pixels, then in `features_of`, over the features' own.
    """
    ends = np.stack([along(latents, direction, np.array([-3, 3]) * spread) for direction in directions])
    pictures = subject.decode(ends.reshape(-1, latents.shape[1]))
    features = features_of(pictures)
    found = []
    for of, size in ((pictures, 1.0), (features, np.sqrt(np.mean(features**2)))):
        of = of.reshape(len(directions), len(latents), 2, -1)
        found.append(np.sqrt(np.mean((of[:, :, 1] - of[:, :, 0]) ** 2, axis=(1, 2))) / max(float(size), 1e-12))
    return np.stack(found, axis=1)


# ------------------------------------------------------------------------------------------------------------ the maps

TSNE_STEPS = 750


def features_of(pictures: np.ndarray) -> np.ndarray:
    """(n, h, w, c) to (n, 4096): relu3_1 of the compact network, place by place, of pictures at 32 pixels."""
    network, params = weights.load_for_style("compact")
    apply = jax.jit(lambda x: network.apply(params, x, ("relu3_1",))["relu3_1"].reshape(len(x), -1))
    small = np.stack([images.resize(picture, (32, 32)) for picture in pictures.astype(np.float32)])
    small = np.repeat(small, 3, -1) if small.shape[-1] == 1 else small
    return np.concatenate([np.asarray(apply(small[i : i + 256])) for i in range(0, len(small), 256)])


def map_sections(subject: Subject, latents: np.ndarray, out: Path, settings: Settings) -> list[Section]:
    title = "Real and made-up pictures on one map"
    if subject.real is None:
        return [Section(title, f"The map needs the real pictures, which are not to be had: {subject.absent}.")]
    fake, real = subject.decode(latents[: settings.drawn]), subject.real
    n, m = len(real), len(fake)
    every = features_of(np.concatenate([real, fake]))
    points, shares = maps.principal_components(every, min(50, n + m - 1))
    if subject.labels is not None:
        labels, names = subject.labels, subject.names
        right = (maps.nearest_classes(points[:n], labels) == labels).mean()
        told = (
            "A made-up picture counts as of the class that most of its 5 nearest real ones have, by the features of "
            f"the map; of {n} real pictures told the same way by the others {right:.1%} come out right, so that "
            "errors of the reading are in the shares too. "
        )
    else:
        from scipy.cluster.vq import kmeans2

        clusters = min(8, n // 4)
        begin = np.random.default_rng(settings.seed).choice(n, clusters, replace=False)
        labels = np.asarray(kmeans2(points[:n], points[begin], minit="matrix")[1], int)
        names = tuple(str(i + 1) for i in range(clusters))
        told = (
            f"These data have no classes; {clusters} clusters of the real pictures (k-means) stand in for them, and a "
            "made-up picture counts as of the cluster that most of its 5 nearest real ones belong to. "
        )
    classes = np.concatenate([labels, maps.nearest_classes(points[:n], labels, points[n:])])
    either = min(settings.count, n, m)  # as many of either kind
    kept = np.concatenate([np.arange(either), n + np.arange(either)])
    kinds = (kept >= n).astype(int)
    apart = (maps.nearest_classes(points[kept], kinds, neighbours=1) == kinds).mean()
    bar = tqdm(total=TSNE_STEPS, desc="t-SNE", leave=False)
    sheet, _ = maps.tsne(points[kept], min(30.0, (len(kept) - 2) / 3), TSNE_STEPS, lambda done: _move(bar, done))
    bar.close()
    where = _thumbnail_map(points, kept, real, fake, n, out), _class_map(sheet, classes[kept], kept < n, names, out)
    text = (
        "Each picture is described by the features that the package's compact network has at relu3_1 (4,096 "
        "numbers), and these are laid out in two dimensions: first by principal components, of which the two shown "
        f"hold {shares[:2].sum():.0%} of the spread, then by t-SNE (van der Maaten & Hinton 2008), which keeps "
        "neighbours together and nothing else, so that the distances between its groups and their sizes mean "
        f"nothing. The nearest neighbour of {apart:.0%} of the pictures is of their own kind, real or made up: 50% "
        "would mean that these features cannot tell the two apart, 100% that no made-up picture passes (Lopez-Paz & "
        "Oquab 2017). Where the kinds mix, a group without crosses is a mode that the generator misses, as far as "
        "these features tell."
    )
    missing, balance = _balance(classes[:n], classes[n:], names, out)
    told += (
        f"{missing} A class that is made often need not be made well, and a made-up picture that is nothing at all is "
        "counted as something."
    )
    found = [Section(title, text, where), Section("Which classes are made, and how often", told, (balance,))]
    return found + _latent_section(latents[:m], classes[n:], names, out)


def _move(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def _thumbnail_map(points, kept, real, fake, n, out) -> Picture:
    order = np.random.default_rng(0).permutation(kept)
    pictures = np.stack([real[i] if i < n else fake[i - n] for i in order])
    with figure(out / "map-pca.png", 1, 1, 6.2) as (_, axes):
        colours = [REAL if i < n else FAKE for i in order]
        thumbnails(axes[0, 0], points[order, :2], pictures, colours, zoom=0.062)
        axes[0, 0].set_xlabel("first principal component")
        axes[0, 0].set_ylabel("second principal component")
        axes[0, 0].set_xticks([])
        axes[0, 0].set_yticks([])
    return Picture("map-pca.png", "Principal components of the features. Blue frames: real pictures; orange: made up.")


def _class_map(sheet, classes, is_real, names, out) -> Picture:
    from matplotlib import colormaps

    shown = np.unique(classes)
    colours = [colormaps["tab10" if len(shown) <= 10 else "tab20"](i % 20) for i in range(len(shown))]
    with figure(out / "map-tsne.png", 1, 1, 6.6) as (drawing, axes):
        axis = axes[0, 0]
        for colour, k in zip(colours, shown, strict=True):
            here = classes == k
            axis.scatter(*sheet[here & is_real].T, s=22, color=colour, alpha=0.55, linewidths=0, label=str(names[k]))
            axis.scatter(*sheet[here & ~is_real].T, s=26, marker="x", color=colour, linewidths=1.3)
            # The class's name on the middlemost of its real points, if it has any.
            inside = sheet[here & is_real] if (here & is_real).any() else sheet[here]
            centre = inside[np.median(maps.squared_distances(inside, inside), axis=1).argmin()]
            axis.annotate(
                str(names[k]),
                centre,
                ha="center",
                va="center",
                weight="bold",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "alpha": 0.85},
            )
        axis.scatter([], [], s=22, color="black", alpha=0.55, linewidths=0, label="real")
        axis.scatter([], [], s=26, marker="x", color="black", linewidths=1.3, label="made up")
        handles, texts = axis.get_legend_handles_labels()
        drawing.legend(handles[-2:], texts[-2:], loc="outside upper center", ncols=2, frameon=False)
        axis.set_xticks([])
        axis.set_yticks([])
    return Picture(
        "map-tsne.png", "t-SNE of the same features, coloured by class. Dots: real pictures; crosses: made up."
    )


def _balance(real, fake, names, out) -> tuple[str, Picture]:
    shares = [np.bincount(kind, minlength=len(names)) / len(kind) for kind in (real, fake)]
    shown = np.flatnonzero(shares[0] + shares[1])
    errors = [np.sqrt(share * (1 - share) / len(kind)) for share, kind in zip(shares, (real, fake), strict=True)]
    rare = [str(names[k]) for k in shown if shares[1][k] < shares[0][k] / 2]
    with figure(out / "balance.png", 1, 1, 3.2) as (_, axes):
        axis, places = axes[0, 0], np.arange(len(shown))
        kinds = zip((-0.2, 0.2), shares, errors, (REAL, FAKE), ("real", "made up"), strict=True)
        for shift, share, error, colour, label in kinds:
            axis.bar(places + shift, 100 * share[shown], 0.4, color=colour, label=label)
            axis.errorbar(
                places + shift, 100 * share[shown], 100 * error[shown], fmt="none", ecolor="black", elinewidth=1
            )
        axis.set_xticks(places, [str(names[k])[:12] for k in shown], rotation=0 if len(shown) <= 12 else 90)
        axis.set_ylabel("share, %")
        axis.legend(frameon=False, ncols=2)
    if rare:
        text = f"Made less than half as often as they occur in the data: {', '.join(rare)}."
    else:
        text = "No class is made less than half as often as it occurs in the data."
    return text, Picture(
        "balance.png", "How often each class occurs. The thin bars are one standard error of the sample."
    )


def _latent_section(latents, classes, names, out) -> list[Section]:
    """The latents themselves, by the class of what becomes of them: fitted on one half and drawn of the other."""
    from matplotlib import colormaps

    half = len(latents) // 2
    fit, held = slice(0, half), slice(half, None)
    counts = np.bincount(classes[fit], minlength=len(names))
    usable = np.flatnonzero(counts >= 5)
    if len(usable) < 3:
        return []
    inside = [np.isin(classes[part], usable) for part in (fit, held)]
    train, train_classes = latents[fit][inside[0]], classes[fit][inside[0]]
    test, test_classes = latents[held][inside[1]], classes[held][inside[1]]
    if len(test) < 8:
        return []
    axes_ = maps.discriminant_directions(train, train_classes, min(len(usable) - 1, latents.shape[1]))
    means = np.stack([(train @ axes_.T)[train_classes == k].mean(0) for k in usable])
    guess = usable[maps.squared_distances(test @ axes_.T, means).argmin(1)]
    right = (guess == test_classes).mean()
    chance = max(np.mean(test_classes == k) for k in usable)
    views = {"principal components": maps.principal_components(test)[0], "Fisher's discriminant": test @ axes_[:2].T}
    with figure(out / "map-latents.png", 1, 2, 3.5) as (_, axes):
        for axis, (name, places) in zip(axes[0], views.items(), strict=True):
            for place, k in zip(places[:300], test_classes[:300], strict=True):
                colour = colormaps["tab10" if len(usable) <= 10 else "tab20"](int(np.searchsorted(usable, k)) % 20)
                axis.text(*place, str(names[k])[:2], color=colour, ha="center", va="center", fontsize=9, weight="bold")
            low, high = places[:300].min(0) - 0.3, places[:300].max(0) + 0.3
            axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), title=name, xticks=[], yticks=[])
    text = (
        "Each mark is a latent, written as the class of the picture that it becomes. Latents are drawn from one "
        "round cloud, so that their principal components (left) show nothing of the classes; Fisher's discriminant "
        f"(right) looks for the plane in which the classes lie farthest apart, and was fitted on {len(train)} latents "
        f"that are not shown. By its {len(axes_)} directions it tells the classes of {len(test)} others right in "
        f"{right:.0%} of the cases, where always naming the commonest would in {chance:.0%}: as far as it does "
        "better, the class is a matter of straight directions among the latents. What it cannot tell may still be "
        "there, in a curved way."
    )
    picture = Picture(
        "map-latents.png", f"{min(len(test), 300)} latents by class. Their places are on a scale of sigma."
    )
    return [Section("Where the classes lie among the latents", text, (picture,))]
