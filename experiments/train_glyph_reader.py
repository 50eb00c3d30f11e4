"""The reader of glyphs that ships with the package.

Paper: none; temperature scaling is Guo et al. 2017 (arXiv:1706.04599), and so is the expected calibration error.
Data: glyphs, drawn on the spot: half in colour, a fifth grey, the others on black grounds; most at 32 pixels, some at
    16 and 64. No other data.
Hardware and time: two CPU cores (Intel Xeon), about 4 minutes of their time; 22 minutes beside much other work.
Expected: experiments/results/glyph_reader.json: all but 1 of 25,000 fresh glyphs and digits at 32 pixels are read
    rightly, 99.8 % at 16 pixels and 99.4 % of disturbed ones. Of the fresh ones 0.2 to 0.5 % are called unreadable, of
    noise, blots, blends, pieces and blurred glyphs 95 to 100 %, of two glyphs one over the other 87 %, and of glyphs
    with the left half of one and the right half of another, which were not trained on, 79 %. The font is right in 63
    to 75 %, the angle is 2 degrees off.
Command: python experiments/train_glyph_reader.py --out ganstyle_jax/features/glyph_reader.safetensors

Three of four images of a batch are glyphs, moved, turned, warped, blurred, in other contrast and with noise, all within
what a person reads without effort. The fourth is unreadable: noise, blots, two glyphs blended or one over the other, a
glyph in shuffled pieces, a quarter of one, one blurred beyond recognition, a bare ground. The network learns the
character (or none), font, angle and the two colours together. The temperature is fitted on fresh images of the same
kind. The threshold of readability is the confidence that all but 1 in 200 untouched fresh glyphs reach, and at least
one half. All figures are of other glyphs than these, drawn with another seed.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax
from scipy.optimize import minimize_scalar
from tqdm import trange

from ganstyle_jax import data
from ganstyle_jax.commands import flags
from ganstyle_jax.data import glyphs
from ganstyle_jax.features import glyph_reader
from ganstyle_jax.features.glyph_reader import CLASSES, Reader
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.images import LUMA

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

SIDE = glyph_reader.IMAGE_SIZE
NONE = len(CLASSES)
DIGITS = glyphs.CHARACTERS[:10]
TRAINING_SEED, CALIBRATION_SEED, TEST_SEED = 1_000_001, 1_000_002, 1_000_003  # of glyphs that share nothing
KINDS = {"colour": {}, "grey": {"grey": True}, "night": {"night": True}}
UNREADABLE = ("noise", "blots", "blend", "over", "pieces", "quarter", "blurred", "bare")  # what is trained on
UNSEEN = ("halves", "coarse_noise")  # and what is not


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long, and on what."""

    out: Path = Path("runs/glyph_reader/glyph_reader.safetensors")
    glyphs: int = 20_000  # drawn once and shown in ever other ways
    steps: int = 2_400
    batch_size: int = 64
    learning_rate: float = 2e-3  # of Adam, down to 0 along a cosine
    unreadable_share: float = 0.25  # of a batch
    unreadable_real: float = 0.005  # share of untouched glyphs below the threshold
    held_out: int = 6_000  # glyphs for the temperature and the threshold
    test_glyphs: int = 10_000  # in colour, and half as many of each other kind
    seed: int = 0
    json: Path | None = Path("glyph_reader.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    flags.use_cache()
    pool = {name: jnp.asarray(x) for name, x in draw_pool(TRAINING_SEED, settings.glyphs).items()}
    params = train(pool, settings)
    held_out = {name: jnp.asarray(x) for name, x in draw_pool(CALIBRATION_SEED, settings.held_out).items()}
    params = scaled(params, held_out["image"])
    reader = calibrate(params, held_out, settings)
    glyph_reader.save(settings.out, reader)
    figures = evaluate(reader, settings.test_glyphs)
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "numpy", "pillow", "matplotlib")),
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if not isinstance(v, Path)},
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        **figures,
    }
    short = {
        "glyphs": settings.glyphs,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "accuracy": {name: figures[name]["accuracy"] for name in (*KINDS, "digits")},
        "calibration_error": figures["calibration_error"],
        "unreadable_real": figures["colour"]["unreadable"],
    }
    glyph_reader.save(settings.out, dataclasses.replace(reader, record=short))
    record["bytes"] = settings.out.stat().st_size
    print(json.dumps(short, indent=1))
    if settings.json is not None:
        machine.write_record(settings.json, record)


# ---------------------------------------------------------------------------------------------------------------------
# Glyphs


def draw_glyphs(
    seed: int, count: int, image_size: int = SIDE, characters: str = glyphs.CHARACTERS, **kind: bool
) -> dict[str, np.ndarray]:
    """The first `count` glyphs of that seed, each factor as one array."""
    drawn = [glyphs.draw(seed, i, image_size, characters, **kind) for i in trange(count, desc="drawing", leave=False)]
    return {name: np.stack([example[name] for example in drawn]) for name in drawn[0]}


def draw_pool(seed: int, count: int) -> dict[str, np.ndarray]:
    """Glyphs of all kinds: image (n, 32, 32, 3) uint8, class, font, slant in units of SLANT, colours in [-1, 1]."""
    parts: list[dict[str, np.ndarray]] = []
    for i, (share, size, kind) in enumerate(
        [(0.4, 32, "colour"), (0.2, 32, "grey"), (0.2, 32, "night"), (0.1, 64, "colour"), (0.05, 16, "colour"),
         (0.05, 16, "night")]
    ):  # fmt: skip
        drawn = draw_glyphs(seed + 10 * i, round(share * count), size, **KINDS[kind])
        images = glyph_reader.resize(jnp.asarray(drawn["image"]))
        colours = np.concatenate([drawn["colour"], drawn["ground"]], axis=1) * 2 - 1
        parts.append(
            {
                "image": np.rint((np.asarray(images) + 1) * 127.5).astype(np.uint8),
                "class": glyph_reader.class_labels(drawn["label"]).astype(np.int32),
                "font": drawn["font"],
                "slant": drawn["slant"] / np.float32(glyphs.SLANT),
                "colours": colours.astype(np.float32),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batch(key: jax.Array, pool: dict[str, jax.Array], n: int, spoiled: int) -> dict[str, jax.Array]:
    """n images as they are trained on, the first `spoiled` of them unreadable (class NONE)."""
    key_choice, key_kind, key_spoil, key_disturb = jax.random.split(key, 4)
    chosen = jax.random.randint(key_choice, (n + spoiled,), 0, len(pool["class"]))
    examples = {name: x[chosen] for name, x in pool.items()}
    examples["image"] = data.to_float(examples["image"])
    first = {name: x[:spoiled] for name, x in examples.items()}
    second = {name: x[n:] for name, x in examples.items()}
    made = unreadable(key_spoil, first, second)
    kind = jax.random.randint(key_kind, (spoiled,), 0, len(UNREADABLE))
    same = first["class"] == second["class"]  # two of one character may be readable
    kind = jnp.where(same, UNREADABLE.index("pieces"), kind)
    spoiled_images = jnp.stack([made[name] for name in UNREADABLE])[kind, jnp.arange(spoiled)]
    images = jnp.concatenate([spoiled_images, examples["image"][spoiled:n]])
    images, angle, gain, shift = disturb(key_disturb, images)
    colours = examples["colours"][:n].reshape(n, 2, 3) * gain[:, None] + shift[:, None]
    return {
        "image": images,
        "class": jnp.where(jnp.arange(n) < spoiled, NONE, examples["class"][:n]),
        "font": examples["font"][:n],
        "slant": examples["slant"][:n] + angle / glyphs.SLANT,
        "colours": jnp.clip(colours, -1, 1).reshape(n, 6),
    }


def unreadable(key: jax.Array, first: dict[str, jax.Array], second: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Of two glyphs each, (m, 32, 32, 3): images that are no character, by UNREADABLE and UNSEEN."""
    keys = iter(jax.random.split(key, 24))
    a, b = first["image"], second["image"]
    m = len(a)
    letter, ground = (first["colours"].reshape(m, 2, 1, 1, 3)[:, i] for i in (0, 1))
    other_letter, other_ground = (second["colours"].reshape(m, 2, 1, 1, 3)[:, i] for i in (0, 1))
    uniform = lambda low, high, *shape: jax.random.uniform(next(keys), (m, *shape), minval=low, maxval=high)  # noqa: E731

    field = jax.image.resize(jax.random.normal(next(keys), (m, 7, 7, 1)), (m, SIDE, SIDE, 1), "cubic")
    blot = jax.nn.sigmoid(uniform(5, 20, 1, 1, 1) * (field - uniform(0, 0.5, 1, 1, 1)))
    contrast, other_contrast = (
        jnp.abs((x - y) @ LUMA)[..., None] for x, y in ((letter, ground), (other_letter, other_ground))
    )
    balance = uniform(0.4, 0.6, 1, 1, 1)  # of the two letters' contrasts in the blend
    weight = balance * other_contrast / (balance * other_contrast + (1 - balance) * contrast)
    cover = jnp.abs((b - other_ground) @ LUMA)[..., None] / other_contrast
    blocks = a.reshape(m, 4, SIDE // 4, 4, SIDE // 4, 3).swapaxes(2, 3).reshape(m, 16, SIDE // 4, SIDE // 4, 3)
    order = jnp.argsort(uniform(0, 1, 16), axis=1)
    shuffled = jnp.take_along_axis(blocks, order[:, :, None, None, None], axis=1)
    pieces = shuffled.reshape(m, 4, 4, SIDE // 4, SIDE // 4, 3).swapaxes(2, 3).reshape(a.shape)
    top, left = uniform(4, SIDE - 16, 1, 1, 1), uniform(4, SIDE - 16, 1, 1, 1)
    rows, columns = jnp.arange(SIDE)[:, None, None], jnp.arange(SIDE)[None, :, None]
    within = (rows >= top) & (rows < top + 12) & (columns >= left) & (columns < left + 12)
    level, strength = uniform(-0.7, 0.7, 1, 1, 3), uniform(0.1, 0.8, 1, 1, 1)
    coarse = jax.random.normal(next(keys), (m, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    made = {
        "noise": level + strength * jax.random.normal(next(keys), a.shape),
        "blots": ground + blot * (letter - ground),
        "blend": weight * a + (1 - weight) * b,
        "over": a + jnp.clip(cover, 0, 1) * (b - a),
        "pieces": pieces,
        "quarter": jnp.where(within, a, ground),
        "blurred": blur(a, uniform(4.5, 9)),
        "bare": jnp.broadcast_to(ground, a.shape),
        "halves": jnp.where(columns < SIDE // 2, a, b),
        "coarse_noise": level + strength * coarse,
    }
    return {name: jnp.clip(images, -1, 1) for name, images in made.items()}


def disturb(key: jax.Array, images: jax.Array) -> tuple[jax.Array, ...]:
    """Images (n, 32, 32, 3) in [-1, 1] as a generator might have made them: two thirds moved and warped, all blurred a
    little, in other contrast and with noise.

    And by how many degrees each was turned (n,), and gain and shift of its colours (n, 3).
    """
    keys = iter(jax.random.split(key, 24))
    n = len(images)
    uniform = lambda low, high, *shape: jax.random.uniform(next(keys), (n, *shape), minval=low, maxval=high)  # noqa: E731
    strength = jnp.maximum(uniform(-0.5, 1), 0)
    angle, scale = 8 * strength * uniform(-1, 1), jnp.exp(0.14 * strength * uniform(-1, 1))
    move = 2.5 * strength[:, None] * uniform(-1, 1, 2)
    warp = jax.image.resize(jax.random.normal(next(keys), (n, 5, 5, 2)), (n, SIDE, SIDE, 2), "cubic")
    centre = (SIDE - 1) / 2
    rows, columns = jnp.meshgrid(*(jnp.arange(SIDE) - centre,) * 2, indexing="ij")
    # From a pixel to where it comes from. Rows point down, so that anticlockwise is the way it is in `glyphs.draw`.
    cos, sin = (f(jnp.deg2rad(angle))[:, None, None] / scale[:, None, None] for f in (jnp.cos, jnp.sin))
    warp = warp * strength[:, None, None, None] * 0.8
    from_rows = centre + cos * rows + sin * columns + move[:, :1, None] + warp[..., 0]
    from_columns = centre - sin * rows + cos * columns + move[:, 1:, None] + warp[..., 1]
    images = blur(sample(images, from_rows, from_columns), 1.3 * uniform(0, 1) ** 2)
    gain = uniform(0.6, 1.15, 1) * uniform(0.85, 1.15, 3)
    shift = uniform(-0.2, 0.2, 1) + uniform(-0.1, 0.1, 3)
    untouched = (uniform(0, 1) < 0.2)[:, None]
    gain, shift = jnp.where(untouched, 1.0, gain), jnp.where(untouched, 0.0, shift)
    images = jnp.clip(images * gain[:, None, None] + shift[:, None, None], -1, 1)
    noise = 0.25 * uniform(0, 1, 1, 1, 1) ** 2 * jax.random.normal(next(keys), images.shape)
    return jnp.clip(images + noise, -1, 1), angle, gain, shift


def sample(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Images (n, s, s, c) at places (n, s, s) in pixels, bilinearly; past the border is what is on the border."""
    n, side, _, channels = images.shape
    flat = images.reshape(n, side * side, channels)
    rows, columns = jnp.clip(rows, 0, side - 1), jnp.clip(columns, 0, side - 1)
    top, left = (jnp.minimum(jnp.floor(x), side - 2) for x in (rows, columns))
    down, right = ((x - start)[..., None] for x, start in ((rows, top), (columns, left)))
    first = (top * side + left).astype(jnp.int32).reshape(n, -1, 1)
    corners = [jnp.take_along_axis(flat, first + step, axis=1).reshape(images.shape) for step in (0, 1, side, side + 1)]
    upper, lower = (corners[i] + right * (corners[i + 1] - corners[i]) for i in (0, 2))
    return upper + down * (lower - upper)


def blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Images (n, s, s, c) by Gaussians of sigma (n,) pixels; beyond the border nothing counts."""
    distance = jnp.arange(SIDE)[:, None] - jnp.arange(SIDE)
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 0.05)[:, None, None]) ** 2)
    weights /= weights.sum(axis=2, keepdims=True)
    return jnp.einsum("nri,nijc->nrjc", weights, jnp.einsum("ncj,nijk->nick", weights, images))


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train(pool: dict[str, jax.Array], settings: Settings) -> glyph_reader.Params:
    key_init, key_train = jax.random.split(jax.random.key(settings.seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, settings.steps // 50, settings.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    spoiled = round(settings.unreadable_share * settings.batch_size)

    def loss_function(params, examples):
        found = glyph_reader.apply(params, examples["image"])
        readable = (examples["class"] != NONE) / (settings.batch_size - spoiled)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        loss = entropy(found["class"], examples["class"]).mean()
        fonts = entropy(found["font"], examples["font"]) @ readable
        slant = (found["slant"] - examples["slant"]) ** 2 @ readable
        colours = ((found["colours"] - examples["colours"]) ** 2).mean(1) @ readable
        return loss + 0.1 * fonts + 0.2 * slant + colours

    @jax.jit
    def run(state, pool, start, count):
        def step(i, carry):
            (params, opt_state), _ = carry
            examples = batch(jax.random.fold_in(key_train, i), pool, settings.batch_size, spoiled)
            loss, gradients = jax.value_and_grad(loss_function)(params, examples)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return lax.fori_loop(start, start + count, step, (state, jnp.zeros(())))

    params = glyph_reader.init(key_init)
    state = params, optimizer.init(params)
    chunk = min(50, settings.steps)
    with trange(0, settings.steps, chunk, desc="training", unit=f" x {chunk} steps") as bar:
        for start in bar:
            state, loss = run(state, pool, start, min(chunk, settings.steps - start))
            bar.set_postfix_str(f"loss {float(loss):.4f}")
    return jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), state[0])  # what the file will hold


def scaled(params: glyph_reader.Params, images: jax.Array) -> glyph_reader.Params:
    """The same network with features of a root mean square near 1, which the kernel of KID expects.

    By a power of two, so that what is read stays the same to the bit.
    """
    features = jax.jit(glyph_reader.apply)(params, images)["features"]
    factor = 2.0 ** -round(np.log2(float(jnp.sqrt(jnp.mean(features**2)))))
    heads = {name: params[name] | {"kernel": params[name]["kernel"] / factor} for name in glyph_reader.HEADS}
    return params | {"features": jax.tree.map(lambda x: x * factor, params["features"])} | heads


def calibrate(params: glyph_reader.Params, held_out: dict[str, jax.Array], settings: Settings) -> Reader:
    """Temperature and threshold, from glyphs that were not trained on."""
    examples = mixture(held_out, settings.unreadable_share, settings.seed + 1)
    apply = jax.jit(glyph_reader.apply)
    logits, labels = np.asarray(apply(params, examples["image"])["class"], np.float64), examples["class"]

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())

    found: Any = minimize_scalar(negative_log_likelihood, bounds=(-2, 2), method="bounded")
    temperature = float(np.exp(found.x))
    reader = Reader(params, temperature, 0.5, {})
    confidence = glyph_reader.read(np.asarray(held_out["image"]), reader=reader).confidence
    threshold = max(0.5, float(np.quantile(confidence, settings.unreadable_real)))
    return dataclasses.replace(reader, threshold=round(threshold, 4))


def mixture(pool: dict[str, jax.Array], unreadable_share: float, seed: int) -> dict[str, np.ndarray]:
    """As many images as the pool has, made as in training."""
    n = len(pool["class"])
    made = jax.jit(batch, static_argnums=(2, 3))(jax.random.key(seed), pool, n, round(unreadable_share * n))
    return {name: np.asarray(x) for name, x in made.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def evaluate(reader: Reader, count: int) -> dict[str, Any]:
    """Figures on fresh glyphs: by kind, of digits, at other sizes, disturbed, and on what is no character."""
    figures: dict[str, Any] = {"temperature": round(reader.temperature, 4), "threshold": reader.threshold}
    for i, (name, kind) in enumerate(KINDS.items()):
        n = count if name == "colour" else count // 2
        figures[name] = measure(reader, draw_glyphs(TEST_SEED + 10 * i, n, **kind), glyphs.CHARACTERS)
    drawn = draw_glyphs(TEST_SEED + 50, count // 2, characters=DIGITS)
    figures["digits"] = measure(reader, drawn, DIGITS)
    figures["digits"]["accuracy_among_all_classes"] = measure(reader, drawn, DIGITS, glyphs.CHARACTERS)["accuracy"]
    for size in (16, 64, 128):
        drawn = draw_glyphs(TEST_SEED + 60 + size, count // 10, size)
        figures[f"{size}px"] = {
            name: x
            for name, x in measure(reader, drawn, glyphs.CHARACTERS).items()
            if name in ("accuracy", "unreadable")
        }

    pool = {name: jnp.asarray(x) for name, x in draw_pool(TEST_SEED + 1000, count // 2).items()}
    n = len(pool["class"])
    mixed = mixture(pool, 0.25, seed=7)
    reading = glyph_reader.read(mixed["image"], reader=reader)
    readable = mixed["class"] != NONE
    right = reading.labels == mixed["class"]
    figures["disturbed"] = {
        "images": int(readable.sum()),
        "accuracy": share(right[readable]),
        "unreadable": share(~reading.readable[readable]),
        "accuracy_of_readable": share(right[readable & reading.readable]),
    }
    figures["calibration_error"] = {
        "glyphs": figures["colour"]["calibration_error"],
        "disturbed_and_unreadable": round(calibration_error(reading.confidence, right), 5),
    }
    first, second = ({k: x[part] for k, x in pool.items()} for part in (slice(n // 2), slice(n // 2, None)))
    first["image"], second["image"] = data.to_float(first["image"]), data.to_float(second["image"])
    differ = np.asarray(first["class"] != second["class"])
    made = jax.jit(unreadable)(jax.random.key(8), first, second)
    figures["unreadable"] = {
        name: share(~glyph_reader.read(np.asarray(made[name])[differ], reader=reader).readable)
        for name in (*UNREADABLE, *UNSEEN)
    }
    return figures


def measure(
    reader: Reader, drawn: dict[str, np.ndarray], characters: str, read_as: str | None = None
) -> dict[str, Any]:
    """How well glyphs of `characters` are read; read_as: among more characters than there are."""
    reading = glyph_reader.read(drawn["image"], read_as or characters, reader)
    names = glyph_reader.classes(characters)
    truth = glyph_reader.class_labels(drawn["label"], characters)
    labels = np.array([reading.characters.index(names[i]) for i in truth])
    right = reading.labels == labels
    pairs: dict[str, int] = {}
    for i in np.flatnonzero(~right):
        pair = f"{names[truth[i]]} read as {reading.characters[reading.labels[i]]}"
        pairs[pair] = pairs.get(pair, 0) + 1
    return {
        "images": len(labels),
        "accuracy": share(right),
        "accuracy_of_readable": share(right[reading.readable]),
        "unreadable": share(~reading.readable),
        "calibration_error": round(calibration_error(reading.confidence, right), 5),
        "font_accuracy": share(reading.fonts.argmax(1) == drawn["font"]),
        "slant_error_degrees": round(float(np.abs(reading.slant - drawn["slant"]).mean()), 2),
        "colour_error": round(float(np.abs(reading.colour - drawn["colour"]).mean()), 4),
        "ground_error": round(float(np.abs(reading.ground - drawn["ground"]).mean()), 4),
        "confusions": dict(sorted(pairs.items(), key=lambda item: -item[1])[:12]),
        "accuracy_by_class": {names[i]: share(right[truth == i]) for i in range(len(names)) if (truth == i).any()},
    }


def share(true: np.ndarray) -> float | None:
    """Of the values, how many are true; None where there are none."""
    return round(float(np.mean(true)), 5) if len(true) else None


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Mean distance of confidence from the share of right answers, over equal bins (Guo et al. 2017, eq. 5)."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs((right[places == i] - confidence[places == i]).sum()) for i in range(bins)]
    return float(sum(gaps) / len(confidence))


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
