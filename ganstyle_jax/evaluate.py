"""How good generated images are: `ganstyle evaluate`, and what training asks every so often.

    network = network_of(settings)
    real = look(*images_of("photos.zip", network, settings.real_count), network, settings)
    fake = look(*images_of("samples.npz", network, settings.count), network, settings)
    record = compare(real, fake, network, settings)      # {"metrics": ..., "protocol": ..., "versions": ...}

A figure means nothing without the way in which it was found, so that none goes without it: the record's "protocol" has
the network and the SHA-256 sum of its weights, how images were resized, how many there were and from where, which
weights and statistics of the generator drew them, and the seed. Figures of different protocol cannot be compared.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ganstyle_jax import __version__, data, glyph_reader, images, processes, runs
from ganstyle_jax.files import UserError, atomic_path, cache_dir
from ganstyle_jax.metrics import distances, features, modes, similarity
from ganstyle_jax.metrics.features import Resize

Metric = Literal[
    "fid", "kid", "inception_score", "precision_recall", "density_coverage", "sliced_wasserstein", "ms_ssim", "glyphs"
]
KEPT = 4096  # images that are kept for metrics of the images themselves
BATCH = 64
OTHER_SEED = 2**32 - 1  # of real images that are drawn on the spot: not those of training


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and in which way."""

    # fid, kid: distances to the real images; precision_recall, density_coverage: quality and variety apart;
    # inception_score; sliced_wasserstein: of patches, by scale; ms_ssim: likeness of pairs, low where there is variety;
    # glyphs: which characters are drawn, how evenly, and how many are unreadable
    metrics: tuple[Metric, ...] = ("fid", "kid", "precision_recall", "density_coverage")
    # network whose features are compared: inception, compact, vgg19:relu3_4 or others of `ganstyle weights list`, with
    # a layer, or FILE.py:FUNCTION; auto: inception if it is here, else compact
    features: str = "auto"
    # how images get the size that the network takes: as clean-fid, TensorFlow 1 or pytorch-fid do, or not at all
    resize: Resize | None = None
    count: int = 10_000  # generated images, if there are so many
    real_count: int = 10_000  # real images, if there are so many
    seed: int = 0  # of the latents, of the choice of images, and of KID's subsets

    def __post_init__(self):
        for name in ("count", "real_count"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if not self.metrics:
            raise ValueError("metrics must be one or more, got none")
        if unknown := [name for name in self.metrics if name not in MEASURES]:
            raise ValueError(f"metrics must be of {', '.join(MEASURES)}, got {unknown[0]!r}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")


def network_of(settings: Settings) -> features.FeatureNetwork:
    """The network that the settings name. UserError where its weights are not here."""
    spec = features.default() if settings.features == "auto" else settings.features
    return features.feature_network(spec, settings.resize)


# ---------------------------------------------------------------------------------------------------------------------
# Images, and what a protocol says of them


def images_of(
    source: str | data.Source,
    network: features.FeatureNetwork,
    count: int,
    seed: int = 0,
    image_size: int | None = None,
    channels: int | None = None,
) -> tuple[features.Images, dict[str, Any]]:
    """`count` images of a source as `ganstyle train --data` takes it, chosen by the seed, or all where there are fewer.

    image_size: cropped and resized as for training; None: as they are. Raises UserError.
    """
    name = source.name if isinstance(source, data.Source) else source
    if isinstance(source, str):
        source = data.open_source(source, image_size, channels, seed=(OTHER_SEED - seed) % 2**32)
    taken = count if source.size is None else min(count, source.size)
    about = {"source": short_name(name), "count": taken, "of": source.size, "image_size": image_size}
    return features.images_from(source, network, count=taken, seed=seed), about


def drawn_by(
    method: Any, cfg: Any, state: Any, count: int, seed: int = 0, sharding: Any = None
) -> tuple[features.Images, dict[str, Any]]:
    """`count` pictures of a generator; its config names the weights and the statistics that it draws with."""
    # Of the method's own functions, so that another generator of the same config is not compiled again.
    make = jax.jit(method.generator, static_argnums=1, out_shardings=sharding)
    draw = jax.jit(method.sample, static_argnums=2, out_shardings=sharding)

    def batches() -> Iterator[np.ndarray]:
        generator = make(state, cfg)
        latents = np.asarray(method.latents(jax.random.key(seed), count, cfg))
        for start in range(0, count, BATCH):
            part = latents[start : start + BATCH]
            filled = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), 0)])  # one program for all
            pictures = np.asarray(draw(generator, filled, cfg), np.float32)[: len(part)]
            if not np.isfinite(pictures).all():
                raise UserError("the generator draws values that are not finite: take an earlier --step")
            yield images.to_uint8(pictures)

    how = {name: getattr(cfg, name) for name in ("weights", "batch_norm") if hasattr(cfg, name)}
    about = {"source": "generator", "count": count, "image_size": cfg.image_size} | how
    return features.Images("generator", count, batches), about


def what_to_read(spec: str, settings: Settings) -> dict[str, str]:
    """For what is said of generated images: the characters that there are in a set of glyphs, if they are to be read.

    UserError where other images are.
    """
    if "glyphs" not in settings.metrics:
        return {}
    if spec.partition(":")[0] != "glyphs":
        raise UserError(f"the metric glyphs is for generators of glyphs, and the real images are {spec}")
    return {"characters": "".join(data.open_source(spec, 32).label_names or ())}


def short_name(spec: str) -> str:
    """Of a path its last part and what lies within it, since the same set may be reached by other paths."""
    path = existing(spec)
    return spec if path is None else str(Path(spec).relative_to(path.parent))


def existing(spec: str) -> Path | None:
    """The file or folder that a source lies in, such as mnist.npz of mnist.npz/x_test; None for no path."""
    path = Path(spec)
    for candidate in (path, *path.parents):
        if candidate.exists() and candidate.name:
            return candidate
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Looking, and comparing what was seen


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """A set of images as the metrics see it."""

    gaussian: distances.Gaussian
    features: np.ndarray | None  # (n, d) float32; None where a file has their mean and covariance alone
    logits: np.ndarray | None  # (n, classes) float32, of a network that names classes
    images: np.ndarray | None  # (at most KEPT, h, w, c) uint8, if a metric wants them
    readings: list[np.ndarray]  # probabilities of characters, (b, k) each, if a metric wants them
    size: tuple[int, int] | None  # (h, w) of the images, where they are known and all have the same
    about: dict[str, Any]


def look(shown: features.Images, about: dict[str, Any], network: features.FeatureNetwork, settings: Settings) -> Seen:
    """Goes through the images once. Raises UserError for features that are not finite."""
    keep = {"sliced_wasserstein", "ms_ssim"} & set(settings.metrics)
    characters = about.get("characters")  # to be read, if any
    kept: list[np.ndarray] = []
    readings: list[np.ndarray] = []
    sizes: set[tuple[int, int]] = set()

    def passing() -> Iterator[np.ndarray]:
        for batch in shown:
            sizes.add(batch.shape[1:3])
            if keep and sum(map(len, kept)) < KEPT:
                kept.append(images.to_uint8(data.to_float(batch)))
            if characters:
                readings.append(glyph_reader.read(batch, characters).probabilities)
            yield batch

    progress = processes.is_first()
    if needs_features(settings):
        found, logits = features.extract(network, passing(), total=len(shown), progress=progress)
        gaussian = distances.gaussian(found)
    else:
        gaussian, found, logits = features.moments(network, passing(), len(shown), progress=progress), None, None
    if len({batch.shape[1:] for batch in kept}) > 1:
        raise UserError(f"{', '.join(sorted(keep))} need images of one size, and those of {shown.name} differ")
    pictures = np.concatenate(kept)[:KEPT] if kept else None
    size = sizes.pop() if len(sizes) == 1 else None
    return Seen(gaussian, found, logits, pictures, readings, size, about)


def needs_features(settings: Settings) -> bool:
    """Whether a metric wants every image's features, and not their mean and covariance alone."""
    return bool({"kid", "inception_score", "precision_recall", "density_coverage"} & set(settings.metrics))


def look_at_source(
    spec: str, network: features.FeatureNetwork, settings: Settings, image_size: int | None, channels: int | None
) -> Seen:
    """`look` at real images, with the features kept from last time where these very images were seen before.

    What is kept is an .npz with mu and sigma, as pytorch-fid reads them, and features and logits beside them.
    """
    shown, about = images_of(spec, network, settings.real_count, settings.seed, image_size, channels)
    if {"sliced_wasserstein", "ms_ssim"} & set(settings.metrics):  # they want the images themselves
        return look(shown, about, network, settings)
    identity = [network.protocol, about, settings.seed, channels, fingerprint(spec), needs_features(settings)]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = cache_dir() / "features" / f"{name[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            gaussian = distances.Gaussian(file["mu"], file["sigma"], int(file["count"]))
            size = tuple(file["size"].tolist()) if "size" in file else None
            return Seen(gaussian, file.get("features"), file.get("logits"), None, [], size, about)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, UserError):  # not there, or damaged
        seen = look(shown, about, network, settings)
    arrays: dict[str, Any] = {
        "mu": seen.gaussian.mean,
        "sigma": seen.gaussian.covariance,
        "count": np.array(seen.gaussian.count),
    }
    arrays |= {} if seen.features is None else {"features": seen.features}
    arrays |= {} if seen.logits is None else {"logits": seen.logits}
    arrays |= {} if seen.size is None else {"size": np.array(seen.size)}
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)
    return seen


def fingerprint(spec: str) -> Any:
    """What changes when the files of a source do: their names, sizes and times."""
    path = existing(spec)
    if path is None:
        return spec
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    listed = [(str(p.relative_to(path.parent)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return [str(path.resolve()), hashlib.sha256(repr(listed).encode()).hexdigest()]


def look_at_statistics(path: Path, network: features.FeatureNetwork) -> Seen:
    """A file of mean and covariance in pytorch-fid's format, ours or anybody's."""
    gaussian, about = features.load_statistics(path, network)
    about = {"source": path.name if about["source"] == "unknown" else about["source"], "count": about["count"]}
    return Seen(gaussian, None, None, None, [], None, about)


def compare(real: Seen, fake: Seen, network: features.FeatureNetwork, settings: Settings) -> dict[str, Any]:
    """The record: {"metrics": {name: number}, "protocol": ..., "versions": ...}.

    Raises UserError for too few images, and where a metric needs more than is known of the real ones.
    """
    if network.size is None and real.size and fake.size and real.size != fake.size:
        raise UserError(
            f"{network.name} takes images as they are, and the real ones have {real.size[1]} x {real.size[0]} pixels, "
            f"the others {fake.size[1]} x {fake.size[0]}: bring both to one size by @{min(fake.size)} behind --features"
        )
    metrics: dict[str, Any] = {}
    for metric in settings.metrics:
        metrics |= MEASURES[metric](real, fake, settings)
    protocol = network.protocol | {"real": real.about, "fake": fake.about, "seed": settings.seed}
    if "kid" in settings.metrics:
        protocol["kid_subset"] = _kid_subset(real, fake)
    return {"metrics": metrics, "protocol": protocol, "versions": versions()}


def versions() -> dict[str, str]:
    packages = ("jax", "flax", "numpy")
    return {"ganstyle_jax": __version__} | {name: importlib.metadata.version(name) for name in packages}


def _fid(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    return {"fid": distances.frechet_distance(real.gaussian, fake.gaussian)}


def _kid(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    size = _kid_subset(real, fake)
    mean, spread = distances.kid(*_features(real, fake, "kid"), subset_size=size, seed=settings.seed)
    return {"kid": mean, "kid_spread": spread}


def _kid_subset(real: Seen, fake: Seen) -> int:
    """Images of a subset: 1,000, as is usual, or half of them where there are fewer, so that subsets differ."""
    return min(1000, *(max(len(seen.features) // 2, 2) for seen in (real, fake) if seen.features is not None))


def _inception_score(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    if fake.logits is None:
        raise UserError("the Inception Score needs a network that names classes: use --features inception")
    mean, spread = distances.inception_score(fake.logits, seed=settings.seed)
    return {"inception_score": mean, "inception_score_spread": spread}


def _precision_recall(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    precision, recall = distances.precision_recall(*_features(real, fake, "precision_recall"))
    return {"precision": precision, "recall": recall}


def _density_coverage(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    density, coverage = distances.density_coverage(*_features(real, fake, "density_coverage"))
    return {"density": density, "coverage": coverage}


def _features(real: Seen, fake: Seen, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if real.features is None or fake.features is None:
        raise UserError(
            f"{metric} needs the images, and {(real if real.features is None else fake).about['source']} has the mean "
            "and covariance of their features alone: give images, or --metrics fid"
        )
    return real.features, fake.features


def _sliced_wasserstein(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    levels = distances.pyramid_wasserstein(*_images(real, fake, "sliced_wasserstein"), seed=settings.seed)
    by_level = {f"sliced_wasserstein_{side}": value for side, value in levels.items()}
    return {"sliced_wasserstein": float(np.mean(list(levels.values())))} | by_level


def _ms_ssim(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    (of_real, _), (of_fake, scales) = (
        similarity.ms_ssim_diversity(x, seed=settings.seed) for x in _images(real, fake, "ms_ssim")
    )
    return {"ms_ssim": of_fake, "ms_ssim_of_real": of_real, "ms_ssim_scales": scales}


def _images(real: Seen, fake: Seen, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if real.images is None or fake.images is None:
        raise UserError(f"{metric} needs the real images themselves, and not a file of statistics")
    return real.images, fake.images


def _glyphs(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    known, shares, names = glyph_accuracy(real.about["source"], fake.about["image_size"] or 32)
    found = modes.modes(np.concatenate(fake.readings), shares, known, names)
    return {f"glyphs_{name}": value for name, value in found.as_dict().items()}


@functools.lru_cache(maxsize=4)
def glyph_accuracy(spec: str, image_size: int, count: int = 4000) -> tuple[modes.Accuracy, np.ndarray, list[str]]:
    """How well the reader reads real glyphs of this kind; how often each class is among them; the classes' names."""
    source = data.open_source(spec, image_size, seed=OTHER_SEED)
    assert source.label_names is not None
    characters = "".join(source.label_names)
    examples = [source.read(i) for i in range(count)]
    reading = glyph_reader.read(np.stack([example["image"] for example in examples]), characters)
    labels = glyph_reader.class_labels(np.array([example["label"] for example in examples]), characters)
    known = modes.accuracy(reading.probabilities, labels, reading.threshold)
    return known, glyph_reader.shares(characters), list(reading.characters)


MEASURES: dict[str, Callable[[Seen, Seen, Settings], dict[str, Any]]] = {
    "fid": _fid,
    "kid": _kid,
    "inception_score": _inception_score,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
    "sliced_wasserstein": _sliced_wasserstein,
    "ms_ssim": _ms_ssim,
    "glyphs": _glyphs,
}
# The number of a metric that tells which of two checkpoints is better, and whether lower (1) or higher (-1) is.
SCORES = {
    "fid": ("fid", 1),
    "kid": ("kid", 1),
    "inception_score": ("inception_score", -1),
    "precision_recall": ("recall", -1),
    "density_coverage": ("coverage", -1),
    "sliced_wasserstein": ("sliced_wasserstein", 1),
    "ms_ssim": ("ms_ssim", 1),
    "glyphs": ("glyphs_unreadable", 1),
}


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured against what, and where the result goes."""

    # real images, as `ganstyle train --data` takes them, or an .npz file of statistics; for a run by default its own
    reference: str | None = None
    step: int | Literal["best"] | None = None  # of a run: the checkpoint to draw from; by default the newest
    weights: Literal["average", "last"] | None = None  # of a run's generator: averaged over training, or the last
    batch_norm: Literal["standing", "running", "batch"] | None = None  # of a run's generator: its statistics
    save_statistics: Path | None = None  # .npz file for the reference's mean and covariance, as pytorch-fid reads them
    json: bool = False  # print the record as JSON


def run(what: Path, options: Options, settings: Settings) -> dict[str, Any]:
    """Measures a run, or images in a folder, archive or .npz, and returns the record; a run's is kept in its folder.

    Raises UserError.
    """
    is_run = (what / "run.json").is_file()
    if not is_run:
        for name in ("step", "weights", "batch_norm"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for a run, and {what} is none")
        if options.reference is None:
            raise UserError("say with --reference what real images to compare with")
    network = network_of(settings)
    image_size = channels = step = None
    if is_run:
        overrides = {name: getattr(options, name) for name in ("weights", "batch_norm")}
        loaded = runs.load(what, options.step, **{k: v for k, v in overrides.items() if v is not None})
        step, image_size, channels = loaded.step, loaded.cfg.image_size, loaded.cfg.channels
        shown, about = drawn_by(loaded.method, loaded.cfg, loaded.state, settings.count, settings.seed)
        reference = options.reference or runs.read(what)["data"]
    else:
        reference = str(options.reference)
        shown, about = images_of(str(what), network, settings.count, settings.seed)
    if features.is_statistics(reference):
        real = look_at_statistics(Path(reference), network)
    else:
        real = look_at_source(reference, network, settings, image_size, channels)
    if options.save_statistics is not None:
        features.save_statistics(options.save_statistics, real.gaussian, network, short_name(reference))
    if settings.features == "auto" and features.default() != "inception":
        print(
            "measured in the features of the compact network, whose figures are not those of publications: for these "
            "run `ganstyle weights fetch inception-fid` once",
            file=sys.stderr,
        )
    fake = look(shown, about | what_to_read(real.about["source"], settings), network, settings)
    record = {"step": step} | compare(real, fake, network, settings)
    if is_run:
        runs.add_evaluation(what, record)
    return record


def table(record: dict[str, Any]) -> str:
    """The record for people: its numbers, and in which way they were found."""
    metrics, protocol = record["metrics"], record["protocol"]
    width = max(map(len, metrics))
    lines = [f"{name:{width}}  {spelled(value)}" for name, value in metrics.items()]
    real, fake = protocol["real"], protocol["fake"]
    drawn = [f"{name} {fake[name]}" for name in ("weights", "batch_norm") if name in fake]
    lines.append(
        f"\n{fake['count']:,} images of {', '.join([fake['source'], *drawn])} against {spelled(real['count'])} of "
        f"{real['source']}, in features {protocol['features']} ({protocol['weights'][:8]}), resize "
        f"{protocol['resize']}, seed {protocol['seed']}"
    )
    return "\n".join(lines)


def spelled(value: Any) -> str:
    """A figure, or a list of them."""
    if isinstance(value, list):
        return ", ".join(map(spelled, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# In training


def in_training(
    method: Any, cfg: Any, spec: str | data.Source, settings: Settings, mesh: jax.sharding.Mesh
) -> Callable[[int, Any], dict[str, Any]]:
    """A function of step and state that gives the record, with a "score": the lower, the better.

    Real images are looked at once. Of several processes each computes all of it, so that none waits for another.
    """
    network = network_of(settings)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    @functools.cache
    def real() -> Seen:
        if isinstance(spec, str):
            return look_at_source(spec, network, settings, cfg.image_size, cfg.channels)
        return look(*images_of(spec, network, settings.real_count, settings.seed, cfg.image_size), network, settings)

    def assess(step: int, state: Any) -> dict[str, Any]:
        shown, about = drawn_by(method, cfg, state, settings.count, settings.seed, everywhere)
        fake = look(shown, about | what_to_read(real().about["source"], settings), network, settings)
        record = compare(real(), fake, network, settings)
        name, sign = SCORES[settings.metrics[0]]
        return {"step": step, "score": sign * record["metrics"][name]} | record

    return assess
