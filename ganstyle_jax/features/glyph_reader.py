"""A small network that reads glyphs: which character, in which font, at which angle, in which two colours, or none.

    reading = glyph_reader.read(samples)               # uint8 or float in [-1, 1], (n, s, s, 1 or 3), any size
    known = modes.accuracy(glyph_reader.read(real).probabilities, glyph_reader.class_labels(labels), reading.threshold)
    found = modes.modes(reading.probabilities, glyph_reader.shares(), known, reading.characters)

It tells the characters of `glyphs` apart, apart from O and 0 and from I and 1, which look too alike: either pair is one
class, so that there are 34. What is no character (noise, two letters in one, a fragment) is a 35th answer, whose
probability is what the 34 lack to 1. The network ships with the package and was made by
experiments/train_glyph_reader.py, whose record in experiments/results/ says how often it is right.

The pixels are folded, 2x2 into channels, as in a first convolution of stride 2; then three 3x3 convolutions with ReLU,
with 2x2 max pooling between them, lead to 128 features, from which linear maps read everything. The features serve as
those of Inception do for FID, where the data are glyphs.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.data.glyphs import CHARACTERS, FONTS, SLANT
from ganstyle_jax.features.array_files import not_finite, parse_json
from ganstyle_jax.io.files import UserError, atomic_path, first_line
from ganstyle_jax.nn import layers

SHIPPED = Path(__file__).with_name("glyph_reader.safetensors")
MERGED = {"O": "0", "I": "1"}
CLASSES = "".join(character for character in CHARACTERS if character not in MERGED)
IMAGE_SIZE = 32  # pixels that the network sees; other sizes are resized to it
CHANNELS = (32, 64, 128)  # of the convolutions, at 16, 8 and 4 pixels
FEATURES = 128
HEADS = {"class": len(CLASSES) + 1, "font": len(FONTS), "slant": 1, "colours": 6}
OUTSIDE = 0.01  # of the samples of a set of fewer characters, those that a generator is expected to make outside of it
CHUNK = 256  # images at a time

Params = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Reader:
    """The weights, and what was found out on glyphs that were not trained on."""

    params: Params
    temperature: float  # the logits are divided by it, which makes confidence the share of right answers
    threshold: float  # a sample is readable if its likeliest character has at least this probability
    record: dict[str, Any]  # how it was trained and how often it is right


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the reader makes of n images. The factors mean something only where the image is readable."""

    characters: str  # the k classes, a subset of CLASSES
    probabilities: np.ndarray  # (n, k) float32; rows sum to 1 less the probability that it is none of them
    features: np.ndarray  # (n, 128) float32, not negative
    fonts: np.ndarray  # (n, 10) float32, probabilities of glyphs.FONTS
    slant: np.ndarray  # (n,) float32, degrees, anticlockwise
    colour: np.ndarray  # (n, 3) float32, of the letter, RGB in [0, 1]
    ground: np.ndarray  # (n, 3) float32, RGB in [0, 1]
    threshold: float

    @property
    def labels(self) -> np.ndarray:
        """(n,) the likeliest character, a place in `characters`."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """(n,) float32, the probability of the likeliest character."""
        return self.probabilities.max(axis=1)

    @property
    def readable(self) -> np.ndarray:
        """(n,) bool."""
        return self.confidence >= self.threshold


def classes(characters: str = CHARACTERS) -> str:
    """The characters as they can be told apart: without O and I. ValueError for others than those of glyphs."""
    if not characters or set(characters) - set(CHARACTERS):
        raise ValueError(f"characters must be some of {CHARACTERS}, got {characters!r}")
    merged = {MERGED.get(character, character) for character in characters}
    return "".join(character for character in CLASSES if character in merged)


def class_labels(labels: Any, characters: str = CHARACTERS) -> np.ndarray:
    """Labels of `glyphs.draw`, places in `characters`, as places in `classes(characters)`."""
    found = classes(characters)
    places = np.array([found.index(MERGED.get(character, character)) for character in characters])
    return places[np.asarray(labels)]


def shares(characters: str = CHARACTERS) -> np.ndarray:
    """(k,) float64: how often `glyphs.draw` draws each of `classes(characters)`, 0 and 1 twice as often as others."""
    places = class_labels(np.arange(len(characters)), characters)
    return np.bincount(places, minlength=len(classes(characters))) / len(characters)


# ---------------------------------------------------------------------------------------------------------------------
# The network


def init(key: jax.Array) -> Params:
    """Random weights, He et al. 2015; those of the heads are small."""
    params: Params = {}
    before = 3 * 2 * 2
    for i, width in enumerate(CHANNELS, start=1):
        key, key_kernel = jax.random.split(key)
        kernel = jax.random.normal(key_kernel, (3, 3, before, width)) * (2 / (9 * before)) ** 0.5
        params[f"conv{i}"] = {"kernel": kernel, "bias": jnp.zeros(width)}
        before = width
    side = IMAGE_SIZE >> len(CHANNELS)
    widths = {"features": (side * side * before, FEATURES)} | {name: (FEATURES, n) for name, n in HEADS.items()}
    for name, (rows, columns) in widths.items():
        key, key_kernel = jax.random.split(key)
        gain = 2 if name == "features" else 0.1
        kernel = jax.random.normal(key_kernel, (rows, columns)) * (gain / rows) ** 0.5
        params[name] = {"kernel": kernel, "bias": jnp.zeros(columns)}
    return params


def apply(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """Images (n, s, s, 1 or 3), uint8 or float in [-1, 1] -> "features" (n, 128), "class" logits (n, 35), the last for
    no character, "font" logits (n, 10), "slant" (n,) in units of SLANT, "colours" (n, 6) of letter and ground, in
    [-1, 1]. Pure and differentiable.
    """
    x = _fold(resize(images))
    for i in range(1, len(CHANNELS) + 1):
        x = x if i == 1 else layers.max_pool(x)
        x = jax.nn.relu(layers.conv(x, params[f"conv{i}"]["kernel"]) + params[f"conv{i}"]["bias"])
    features = jax.nn.relu(_linear(params["features"], x.reshape(len(x), -1)))
    found = {name: _linear(params[name], features) for name in HEADS}
    return {"features": features, **found, "slant": found["slant"][:, 0]}


def resize(images: jax.Array) -> jax.Array:
    """(n, h, w, 1 or 3), uint8 or float in [-1, 1] -> (n, 32, 32, 3) float32; smaller by averaging, larger linearly."""
    x = jnp.asarray(images)
    x = x.astype(jnp.float32) / 127.5 - 1 if x.dtype == jnp.uint8 else x.astype(jnp.float32)
    if x.shape[1:3] != (IMAGE_SIZE, IMAGE_SIZE):
        x = jax.image.resize(x, (len(x), IMAGE_SIZE, IMAGE_SIZE, x.shape[-1]), "linear", antialias=True)
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def _fold(x: jax.Array) -> jax.Array:
    """(n, h, w, c) -> (n, h / 2, w / 2, 4 c): the four pixels of each square side by side."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def _linear(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read(images: Any, characters: str = CHARACTERS, reader: Reader | None = None) -> Reading:
    """Reads images (n, s, s, 1 or 3), uint8 or float in [-1, 1], of any size, as some of `characters`.

    With fewer characters, such as the digits of `glyphs:digits`, probabilities are those of a set of these alone
    (Saerens et al. 2002: each is multiplied by how much more often the class is met in this set than in training),
    except that OUTSIDE of the samples are taken to be other characters, in which class they are unreadable: a 5 that
    might be an S is a 5, while a clear K is not called by the digit that resembles it most. Raises UserError for
    arrays that are no images.
    """
    reader = load() if reader is None else reader
    images = _checked(images)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        n = len(chunk)
        if n < CHUNK < len(images):  # one program for all chunks
            chunk = np.concatenate([chunk, np.zeros((CHUNK - n, *chunk.shape[1:]), chunk.dtype)])
        found = _program(reader.params, chunk)
        parts.append({name: np.asarray(x)[:n] for name, x in found.items()})
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    colours = np.clip((found["colours"] + 1) / 2, 0, 1)
    return Reading(
        characters=classes(characters),
        probabilities=probabilities(found["class"], characters, reader.temperature),
        features=found["features"],
        fonts=np.asarray(_softmax(found["font"]), np.float32),
        slant=found["slant"] * np.float32(SLANT),
        colour=colours[:, :3],
        ground=colours[:, 3:],
        threshold=reader.threshold,
    )


_program = jax.jit(apply)


def probabilities(logits: Any, characters: str = CHARACTERS, temperature: float = 1.0) -> np.ndarray:
    """Logits (n, 35) -> (n, k) float32 of `classes(characters)`, see `read`."""
    all_shares, found = shares(), classes(characters)
    places = np.array([CLASSES.index(character) for character in found])
    p = _softmax(np.asarray(logits, np.float64) / temperature)
    if len(found) < len(CLASSES):
        expected = np.zeros(len(CLASSES))
        others = np.setdiff1d(np.arange(len(CLASSES)), places)
        expected[places] = (1 - OUTSIDE) * shares(characters)
        expected[others] = OUTSIDE * all_shares[others] / all_shares[others].sum()
        p[:, :-1] *= expected / all_shares
        p /= p.sum(axis=1, keepdims=True)
    return p[:, places].astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _checked(images: Any) -> np.ndarray:
    images = np.asarray(images)
    accepted = "images (n, s, s, 1 or 3), uint8 or float in [-1, 1]"
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.shape[1] != images.shape[2] or not images.size:
        raise UserError(f"the reader of glyphs got an array of shape {images.shape}; accepted are {accepted}")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"the reader of glyphs got images of dtype {images.dtype}; accepted are {accepted}")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1.01 and high <= 1.01):  # NaN too
        raise UserError(f"the reader of glyphs got values from {low:g} to {high:g}; accepted are {accepted}")
    return images.astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The file


def load(path: Path | str = SHIPPED) -> Reader:
    """The reader that ships with the package, or one that train_glyph_reader.py has made. Raises UserError."""
    return _load(Path(path))


@functools.lru_cache(maxsize=2)
def _load(path: Path) -> Reader:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = parse_json((file.metadata() or {}).get("glyph_reader", "{}"), "what it says of itself")
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path} as a reader of glyphs ({first_line(error)})") from error
    expected = jax.eval_shape(init, jax.random.key(0))
    shapes = {f"{layer}/{part}": x.shape for layer, of in expected.items() for part, x in of.items()}
    if {name: array.shape for name, array in arrays.items()} != shapes or about.get("classes") != CLASSES:
        raise UserError(
            f"{path} holds no reader of glyphs of this version: it has {', '.join(list(arrays)[:3])} ..., not "
            f"{', '.join(list(shapes)[:3])} ... in their sizes; make one with experiments/train_glyph_reader.py"
        )
    numbers = [about.get("temperature"), about.get("threshold")]
    if not all(isinstance(x, int | float) and 0 < x < math.inf for x in numbers) or not isinstance(
        about.get("record"), dict
    ):
        raise UserError(
            f"{path} does not say at which temperature and threshold it reads; make one with experiments/"
            "train_glyph_reader.py"
        )
    if faults := [fault for name, array in arrays.items() if (fault := not_finite(array, name))]:
        raise UserError(f"{path} is no reader of glyphs that works: {faults[0]}")
    params: Params = {}
    for name, array in arrays.items():
        layer, _, part = name.partition("/")
        params.setdefault(layer, {})[part] = jax.device_put(np.asarray(array, np.float32))
    return Reader(params, about["temperature"], about["threshold"], about["record"])


def save(path: Path | str, reader: Reader) -> None:
    """Writes .safetensors in float16; classes, temperature, threshold, architecture and record are its metadata."""
    from safetensors.numpy import save_file

    about = {
        "classes": CLASSES,
        "architecture": {"image_size": IMAGE_SIZE, "channels": CHANNELS, "features": FEATURES, "heads": HEADS},
        "temperature": reader.temperature,
        "threshold": reader.threshold,
        "record": reader.record,
    }
    arrays = {
        f"{layer}/{part}": np.ascontiguousarray(x, np.float16)
        for layer, of in reader.params.items()
        for part, x in of.items()
    }
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, {"glyph_reader": json.dumps(about)})
