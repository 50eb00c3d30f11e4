"""Which ways in latent space change a picture: the generator's Jacobian and its first layer, against chance.

Directions are pure functions of functions and matrices; `sections` computes them for a run, draws and words them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ganstyle_jax import contract
from ganstyle_jax.io import images
from ganstyle_jax.look.explain import projections
from ganstyle_jax.look.explain.sections import FAKE, PLAIN, REAL, Picture, Section, figure, show
from ganstyle_jax.look.explain.subject import Settings, Subject

TITLE = "What single latent directions do"
WALKED = 3  # directions that are walked along, from as many latents
COMPARED = 16  # directions whose effects are measured, of either kind
STOPS = np.linspace(-3, 3, 7)  # sigma

# ---------------------------------------------------------------------------------------------------------------------
# What is computed


def jacobian_gram(generate: Callable[[Any], jax.Array], latents: jax.Array, requests: Any = None) -> jax.Array:
    """The mean of J^T J, (d, d), over latents (n, d), J being d picture / d latent.

    v^T J^T J v is how much the picture changes, in squared pixel values, for a small step v. generate: requests of one
    picture to (1, ...), differentiable twice in reverse; J v is the derivative of u -> J^T u, which is linear, so that
    no rule for forward mode is needed. requests: of n pictures, which these latents are a part of; by default they are
    all that is asked for.
    """
    basis = jnp.eye(latents.shape[1], dtype=latents.dtype)
    requests = latents if requests is None else requests

    @jax.jit
    def of(z, request):
        picture, pull = jax.vjp(lambda z: generate(contract.with_latents(request, z[None]))[0], z)
        _, push = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(picture))
        columns = jax.lax.map(lambda v: push(v)[0].reshape(-1), basis, batch_size=10)
        return jnp.matmul(columns, columns.T, precision="highest")

    total = jnp.zeros_like(basis)
    for i in tqdm(range(len(latents)), "Jacobians of the generator", leave=False):
        total += of(latents[i], jax.tree.map(lambda x, i=i: jnp.asarray(x[i : i + 1]), requests))
    return total / len(latents)


def principal_directions(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric (d, d) to its eigenvalues (d,), the largest first, and unit eigenvectors, the rows of (d, d)."""
    values, axes = np.linalg.eigh(np.asarray(gram, np.float64))
    return np.maximum(values[::-1], 0), projections.fix_signs(axes.T[::-1])


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


def by_lot(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Unit vectors (count, dimensions) that prefer no direction."""
    found = np.random.default_rng(seed).normal(size=(count, dimensions))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def effects(subject: Subject, latents: np.ndarray, directions: np.ndarray, spread: float) -> np.ndarray:
    """How far apart the ends of walks from -3 to 3 sigma are along each of k directions, (k, 2).

    Root mean square of the difference, first in pixels, then in `features_of`, over the features' own. latents: those
    of the first n requests, (n, d).
    """
    ends = [along(latents, direction, np.array([-3, 3]) * spread) for direction in directions]
    pictures = subject.make_from(np.stack(ends, axis=1).reshape(len(latents), -1, latents.shape[1]))
    features = projections.features_of(pictures)
    found = []
    for of, size in ((pictures, 1.0), (features, np.sqrt(np.mean(features**2)))):
        of = of.reshape(len(latents), len(directions), 2, -1)
        found.append(np.sqrt(np.mean((of[:, :, 1] - of[:, :, 0]) ** 2, axis=(0, 2))) / max(float(size), 1e-12))
    return np.stack(found, axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn

TITLES = {
    "jacobian": "direction {i} of the Jacobian",
    "sefa": "direction {i} of the first layer (SeFa)",
    "lot": "a direction drawn by lot",
}


def draw_walks(file: Path, subject: Subject, directions: np.ndarray, spread: float, title: str) -> None:
    """A sheet for each direction: a row for each of the first latents, walked along it."""
    assert subject.latents is not None
    walks = subject.latents[:WALKED]
    marks = [f"{stop:+.0f}σ" if stop else "0" for stop in STOPS]  # noqa: RUF001  (sigma is meant)
    with figure(file, len(directions), 1, 3.0 * len(directions)) as (_, axes):
        for i, direction in enumerate(directions):
            frames = subject.make_from(along(walks, direction, STOPS * spread))
            show(axes[i, 0], images.grid(frames, columns=len(STOPS), padding=1), title.format(i=i + 1))
            side = frames.shape[2] + 1
            axes[i, 0].set_xticks([(k + 0.5) * side for k in range(len(STOPS))], marks)
            axes[i, 0].tick_params(length=0)


def draw_effects(file: Path, values: np.ndarray, effect: dict[str, np.ndarray]) -> None:
    """values: eigenvalues of the Jacobian's Gram matrix; effect: by kind of direction, as `effects` gives it."""
    with figure(file, 3, 1, 8.0) as (_, axes):
        top, mean = axes[0, 0], max(float(values.mean()), 1e-30)
        top.semilogy(np.arange(1, len(values) + 1), np.maximum(values / mean, 1e-6), color=REAL, linewidth=2)
        top.axhline(1, color=PLAIN, linestyle=":")
        top.text(len(values), 1.15, "mean of all", ha="right", color=PLAIN)
        top.set_ylim(bottom=max(1e-4, values[-1] / mean / 2))
        top.set_ylabel("change, small step")
        top.set_xlabel("direction of the Jacobian, all")
        for k, name in enumerate(("in pixels", "in features")):
            axis, chance = axes[k + 1, 0], effect["lot"][:, k]
            places = np.arange(1, len(effect["jacobian"]) + 1)
            band = [0.5, len(places) + 0.5], chance.min(), chance.max()
            axis.fill_between(*band, color=PLAIN, alpha=0.3, linewidth=0, label="drawn by lot")
            axis.plot(places, effect["jacobian"][:, k], "o-", color=REAL, label="Jacobian")
            if "sefa" in effect:
                axis.plot(places, effect["sefa"][:, k], "s--", color=FAKE, label="first layer (SeFa)")
            axis.set_ylim(0, 1.1 * max(float(of[:, k].max()) for of in effect.values()) or 1)
            axis.set_ylabel(f"change {name}")
        axes[1, 0].legend(frameon=False)
        axes[2, 0].set_xlabel(f"direction, the first {len(effect['jacobian'])}")


# ---------------------------------------------------------------------------------------------------------------------
# What is said

CAPTIONS = {
    "jacobian": "Walks along the directions that change the picture most, by the generator's Jacobian.",
    "sefa": "Walks along the directions that the first layer's weights enlarge most (SeFa).",
    "lot": "Walks along directions drawn by lot, for comparison.",
}
EFFECTS_CAPTION = (
    "How much the picture changes along each direction. Above: for a small step, over the mean direction. "
    "Middle: between the ends of walks from -3 to +3 sigma, root mean square over pixels (2 is black to white). "
    "Below: the same in the features of the compact network at relu3_1, over the features' own size. Grey: "
    f"{COMPARED} directions by lot."
)


def sections(subject: Subject, out: Path, settings: Settings) -> list[Section]:
    """One section; it says so where pictures are not asked for by vectors."""
    latents, method = subject.latents, subject.run.method
    if latents is None:
        text = "What this method makes pictures of is no vectors, so that there are no directions to walk along."
        return [Section(TITLE, text)]
    part = jax.tree.map(lambda x: x[: settings.jacobians], subject.requests)
    gram = jacobian_gram(subject.generate, jnp.asarray(latents[: settings.jacobians]), part)
    values, axes = principal_directions(np.asarray(gram))
    found = {"jacobian": axes}
    if method.has("first_layer"):
        found["sefa"] = sefa(np.asarray(method.module.first_layer(subject.variables, subject.run.cfg)))[1]
    found["lot"] = by_lot(COMPARED, latents.shape[1], settings.seed)
    spread = latents.std()  # sigma, 1 for standard normal latents
    effect = {name: effects(subject, latents[:32], directions[:COMPARED], spread) for name, directions in found.items()}
    draw_effects(out / "directions.png", values, effect)
    shown = min(WALKED, latents.shape[1])
    pictures = [Picture("directions.png", EFFECTS_CAPTION)]
    for name, directions in found.items():
        draw_walks(out / f"directions-{name}.png", subject, directions[:shown], spread, TITLES[name])
        pictures.append(Picture(f"directions-{name}.png", f"{CAPTIONS[name]} Three latents each, from -3 to +3 sigma."))
    return [Section(TITLE, text_of(found, effect, shown, settings.jacobians), tuple(pictures))]


def text_of(found: dict[str, np.ndarray], effect: dict[str, np.ndarray], shown: int, jacobians: int) -> str:
    dimensions = found["lot"].shape[1]
    chance = np.maximum(effect["lot"].mean(0), 1e-12)
    ratio = {name: of[:WALKED].mean(0) / chance for name, of in effect.items()}
    k = min(10, dimensions)
    text = (
        f"Every latent is a point in a space of {dimensions} dimensions, most of which change little. J is the "
        f"derivative of the picture by the latent: the eigenvectors of the mean of JᵀJ over {jacobians} "
        "latents are the directions in which a small step changes the pixels most. "
    )
    if "sefa" in found:
        text += (
            "SeFa (Shen & Zhou 2021) takes the eigenvectors of AAᵀ of the first layer's weights A instead, which "
            f"needs no picture at all; the first {k} of both span spaces with an overlap of "
            f"{overlap(found['jacobian'][:k], found['sefa'][:k]):.2f} (1: the same, {k / dimensions:.2f}: "
            "chance). "
        )
    beside = f"; along SeFa's {ratio['sefa'][0]:.1f} and {ratio['sefa'][1]:.1f} times" if "sefa" in ratio else ""
    return text + (
        f"A walk along the first {shown} of the Jacobian changes the picture {ratio['jacobian'][0]:.1f} times as much "
        f"as one along directions drawn by lot in pixels and {ratio['jacobian'][1]:.1f} times in features, which the "
        f"Jacobian was not asked about{beside}. What such a direction means, one reads into it: it may change several "
        "things at once, and others for another latent."
    )
