"""The compact perceptual network that ships with the package, distilled from VGG-19 on the pictures that it makes.

Papers: Simonyan & Zisserman 2015 (arXiv:1409.1556), the teacher; Ross, Gordon & Bagnell 2011 (arXiv:1011.0686), why a
    student must learn where its own decisions lead; Czarnecki et al. 2017 (arXiv:1706.04859), derivatives as targets.
Data: VGG-19 in 8 bits (CC BY 4.0); 1,000 photographs of ImageNet (Deng et al. 2009) at 240 pixels and 2,048 paintings
    of PACS (Li et al. 2017) at 192 pixels, for research. All are expected in the folder --data.
Hardware and time: one CPU core (AMD EPYC): 4 minutes for first weights, then 1.1 to 1.6 s a step: 65 and 60 minutes.
Expected: experiments/results/distill_vgg.json; what it means for pictures is in style_judge.py. The weights that ship
    were made in two runs: 2,400 steps with the defaults and with channels (16, 32), (48, 32), (96, 48, 48, 64),
    (192, 96, 96, 128), (256,), which was interrupted twice and went on with other settings (to step 800 with
    gram_weight 1, moves 3 of single pixels and the schedule of 3,200 steps, to step 1,400 with that of 3,000); then the
    wider network of the second command, to step 1,200 with the schedule of 2,600 steps.
Command: python experiments/distill_vgg.py
    python experiments/distill_vgg.py --begin-with narrower.safetensors --crop 112 --batch-size 5 --examples 2 \\
        --derivatives 1 --steps 3500

A small network errs where nobody has looked: an image that is optimised through it goes there, to what satisfies the
student and not VGG-19. So it learns in two stages.

First weights, in closed form, layer by layer: the channels of VGG-19 from which all others of a layer are best had
linearly (QR with column pivoting), whose values before the ReLU are regressed on what the student has by then. A linear
head behind each tap is regressed on VGG-19's first principal components there, so that Gram matrices and distances in
the student are VGG-19's, but for the components left out.

Then it learns on images that are being made through it: a pool of them, each from a photograph, noise or an enlarged
crop of a smaller result, is moved by Adam down the student's own loss of style transfer, a few moves at every step, and
the student is corrected on where that has led: VGG-19's features, their Gram matrices, and the direction in which
VGG-19 would have moved the image.
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
import scipy.linalg
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from safetensors.numpy import load_file, save_file
from tqdm import trange

from ganstyle_jax import data as data_module
from ganstyle_jax.commands import flags
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.loop.checkpoints import Checkpoints
from ganstyle_jax.nn import layers
from ganstyle_jax.style.losses import gram_matrix
from ganstyle_jax.style.optimise import spread

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
TAPS = (*STYLE, "relu4_2")  # which have heads
STUDENT = vgg.COMPACT
FITTED = 96  # pixels of the squares that the first weights are regressed on
TO_UNITS = 64.0  # the first convolution sees colours of about 1, so that all weights can move at one rate


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long, and on what."""

    data: Path = machine.ROOT / ".." / "shared" / "data"  # folder with weights/ and datasets/
    run_dir: Path = Path("runs/distill_vgg")  # checkpoints; the same command goes on from the last one
    begin_with: Path | None = None  # weights of a narrower network to go on from, whose function is kept; else none
    out: Path | None = None  # the weights, .safetensors; by default compact.safetensors in the run folder
    steps: int = 2_400
    crop: int = 96  # pixels of the images that are made
    pool: int = 48  # images under way
    batch_size: int = 6  # of them in a step
    moves: int = 4  # of each of these in a step
    examples: int = 3  # of their styles and contents, which are pictures, that the student sees too in a step
    derivatives: int = 2  # images whose direction it learns in a step
    learning_rate: float = 6e-4  # of Adam, down to a fiftieth along a cosine
    gram_weight: float = 3.0  # of the error of Gram matrices, beside that of features
    derivative_weight: float = 0.2  # of the error of directions
    fitted: int = 160  # pictures that the first weights are regressed on
    seed: int = 0
    json: Path | None = Path("distill_vgg.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    flags.use_cache()
    network, params = weights.load_for_style(settings.data / "weights" / "vgg19_8bit.npz")
    assert isinstance(network, vgg.VGG)
    training, held_out = load_pictures(settings.data / "datasets", settings.crop)

    checkpoints = Checkpoints(settings.run_dir)
    rng = np.random.default_rng(settings.seed)
    first = settings.run_dir / "first.safetensors"
    if not first.is_file():
        narrower = None
        if settings.begin_with is not None:
            narrower = jax.tree.map(np.float32, unflatten_dict(load_file(settings.begin_with), sep="/"))
        fitting, _ = load_pictures(settings.data / "datasets", FITTED)
        found = first_weights(network, params, disturbed(rng, fitting, settings.fitted, FITTED), narrower)
        with atomic_path(first) as temporary:
            arrays: Any = flatten_dict(jax.tree.map(np.asarray, {"t": found[0], "s": found[1]}), sep="/")
            save_file(arrays, temporary)
    read = unflatten_dict(jax.tree.map(jnp.asarray, load_file(first)), sep="/")
    teacher, student = read["t"], read["s"]
    lesson = Lesson(network, vgg.prepare(network, params), teacher, student["input"], settings)
    state: dict[str, Any] = {"student": {k: v for k, v in student.items() if k != "input"}}
    state |= {"mean": state["student"], "opt": lesson.optimizer.init(state["student"])}
    state["pool"] = lesson.fresh(rng, training, settings.pool)

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype, sharding=device), state)
    begun, state = checkpoints.restore(abstract) or (0, state)
    state["pool"] = jax.tree.map(np.array, state["pool"])
    errors = {}
    with checkpoints, trange(begun, settings.steps, initial=begun, total=settings.steps) as bar:
        for step in bar:
            errors = lesson.step(state, training, step)
            if step % 10 == 9:
                bar.set_postfix_str(" ".join(f"{name} {float(x):.3f}" for name, x in errors.items()))
            if (step + 1) % 200 == 0 or step + 1 == settings.steps:
                checkpoints.save(step + 1, jax.tree.map(jnp.asarray, state))

    learned = state["mean"] | {"input": student["input"]}
    rng = np.random.default_rng(settings.seed + 1)
    some = np.stack([crop(rng, held_out, settings.crop) for _ in range(24)])
    found = {
        name: round(float(x), 4) for name, x in lesson.errors_on_pictures(learned, data_module.to_float(some)).items()
    }
    print(json.dumps(found, indent=1))
    weights.write(settings.out or settings.run_dir / "compact.safetensors", STUDENT, learned, np.float16)
    if settings.json is not None:
        record: dict[str, Any] = machine.describe() | {
            "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "numpy")),
            "settings": {k: v for k, v in dataclasses.asdict(settings).items() if not isinstance(v, Path)},
            "pictures": {"training": len(training), "held_out": len(held_out)},
            "held_out_relative_errors": found,
            "last_errors": {name: round(float(x), 4) for name, x in errors.items()},
        }
        machine.write_record(settings.json, record)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def load_pictures(folder: Path, side: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photographs (n, 240, 240, 3) and paintings (n, 192, 192, 3), uint8: for training, and a twentieth held out."""
    training, held_out = [], []
    for name, size in (("imagenet_sample_1000_256px.zip", 240), ("pacs_photo_art_160px.zip", 192)):
        size = max(size, 2 * side)
        source = data_module.open_source(str(folder / name), size, channels=3)
        images = [source.read(i)["image"] for i in range(source.size or 0)]
        pictures = np.stack(images)[np.random.default_rng(0).permutation(len(images))]
        kept = max(1, len(pictures) // 20)
        training.append(pictures[:-kept])
        held_out.append(pictures[-kept:])
    return training, held_out


def crop(rng: np.random.Generator, sets: list[np.ndarray], side: int, paintings: float = 0.5) -> np.ndarray:
    """A random square of a random picture, mirrored or not, (side, side, 3) uint8."""
    pictures = sets[int(rng.random() < paintings)]
    picture = pictures[rng.integers(len(pictures))]
    top, left = rng.integers(0, picture.shape[0] - side + 1, 2)
    picture = picture[top : top + side, left : left + side]
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def disturbed(rng: np.random.Generator, sets: list[np.ndarray], count: int, side: int) -> jax.Array:
    """Pictures (count, side, side, 3) in [-1, 1], of which every third has another contrast, a tint and noise."""
    images = np.array(data_module.to_float(np.stack([crop(rng, sets, side) for _ in range(count)])))
    for image in images[::3]:
        noise = 0.25 * rng.random() ** 2 * rng.normal(size=image.shape)
        image[:] = np.clip(image * rng.uniform(0.6, 1.4, 3) + 0.2 * rng.normal(size=3) + noise, -1, 1)
    return jnp.asarray(images, jnp.float32)


# ---------------------------------------------------------------------------------------------------------------------
# First weights, in closed form


def first_weights(
    network: vgg.VGG, params: vgg.Params, images: jax.Array, narrower: vgg.Params | None = None
) -> tuple[dict[str, jax.Array], vgg.Params]:
    """By tap the teacher's components (c, d), over the features' root mean square; and the student.

    narrower: a network of fewer channels whose function the student has at first: nothing follows from new channels
    yet, which are those of the teacher that its own are least like.
    """
    relus = [name for name in network.names if name.startswith("relu")]
    relus = relus[: relus.index(STYLE[-1]) + 1]
    widths = [width for block in STUDENT.channels for width in block]
    heads = {tap: STUDENT.heads[int(tap[4]) - 1][int(tap[6]) - 1] for tap in TAPS}
    batches = [images[i : i + 8] for i in range(0, len(images), 8)]
    taught = jax.jit(lambda images, taps: network.apply(params, images, taps), static_argnames="taps")
    rng = np.random.default_rng(0)

    student: vgg.Params = {"input": jax.tree.map(lambda x: x / TO_UNITS, params["input"])}
    components = {}
    before = [jnp.matmul(batch, student["input"]["kernel"]) + student["input"]["bias"] for batch in batches]
    for relu, width in zip(relus, widths, strict=True):
        conv = relu.replace("relu", "conv")
        # Of a layer's channels those that the others are best had from.
        features = [np.asarray(taught(batch, (relu,))[relu]) for batch in batches]
        flat = [x.reshape(-1, x.shape[-1]) for x in features]

        if conv.endswith("_1") and conv != "conv1_1":
            before = [layers.max_pool(x) for x in before]
        mode = "reflect" if conv == "conv1_1" and STUDENT.first_padding == "reflect" else "constant"
        padded = [jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode) for x in before]
        chosen = [rng.permutation(len(x))[:500] for x in flat]
        sample = np.concatenate([x[places] for x, places in zip(flat, chosen, strict=True)])
        old: Any = None if narrower is None else widened(narrower[conv], before[0].shape[-1])
        if old is not None:  # what its channels do not say already
            own = [jax.nn.relu(neighbours(x) @ old["kernel"] + old["bias"]) for x in padded]
            own = [np.asarray(x.reshape(-1, x.shape[-1])[places]) for x, places in zip(own, chosen, strict=True)]
            known = np.concatenate(own)
            sample = sample - known @ np.linalg.lstsq(known, sample)[0]
        kernels, biases = ([], []) if old is None else ([old["kernel"]], [old["bias"]])
        if more := width - sum(map(len, biases)):
            kept = np.sort(np.asarray(scipy.linalg.qr(sample, mode="r", pivoting=True)[-1])[:more])
            values = [taught(batch, (conv,))[conv][..., kept] for batch in batches]
            kernel, bias = regression([neighbours(x) for x in padded], values)
            found = [jax.nn.relu(neighbours(x) @ kernel + bias) for x in padded]
            scale = jnp.sqrt(jnp.mean(jnp.stack([jnp.mean(x**2) for x in found])))
            kernels, biases = [*kernels, kernel / scale], [*biases, bias / scale]
        kernel, bias = jnp.concatenate(kernels, 1), jnp.concatenate(biases)
        before = [jax.nn.relu(neighbours(x) @ kernel + bias) for x in padded]
        student[conv] = {"kernel": kernel.reshape(3, 3, -1, width), "bias": bias}

        if relu in heads:
            gram: Any = sum(x.T.astype(float) @ x for x in flat)
            energies, axes = np.linalg.eigh(gram)
            scale = np.sqrt(energies.sum() / sum(len(x) for x in flat) / len(gram))
            components[relu] = jnp.asarray(axes[:, ::-1][:, : heads[relu]] / scale, jnp.float32)
            projected = [x @ components[relu] for x in features]
            student[conv]["head"] = regression(before, projected, constant=False)[0]
            if narrower is not None:
                old_head = jnp.asarray(narrower[conv]["head"])
                student[conv]["head"] = jnp.pad(old_head, ((0, width - len(old_head)), (0, 0)))
    return components, student


def widened(layer: dict[str, jax.Array], inputs: int) -> dict[str, jax.Array]:
    """A narrower network's kernel as (9 inputs, c), which takes nothing from the new channels before it."""
    kernel = jnp.asarray(layer["kernel"])
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, inputs - kernel.shape[2]), (0, 0)))
    return {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": jnp.asarray(layer["bias"])}


def neighbours(x: jax.Array) -> jax.Array:
    """(b, h + 2, w + 2, c) -> (b, h, w, 9 c), in the order of a 3x3 kernel's axes."""
    h, w = x.shape[1] - 2, x.shape[2] - 2
    return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)


def regression(given: list, wanted: list, constant: bool = True) -> tuple[jax.Array, jax.Array]:
    """Ridge regression over all places of all batches: the matrix (c, d) and the constant (d,)."""

    @jax.jit
    def products(x, y):
        x, y = x.reshape(-1, x.shape[-1]), jnp.asarray(y).reshape(-1, y.shape[-1])
        x = jnp.concatenate([x, jnp.full((len(x), 1), float(constant))], 1)
        return x.T @ x, x.T @ y

    xx: Any = 0.0
    xy: Any = 0.0
    for x, y in zip(given, wanted, strict=True):
        one, other = products(x, y)
        xx, xy = xx + np.asarray(one, float), xy + np.asarray(other, float)
    ridge = np.full(len(xx), 1e-4 * np.trace(xx[:-1, :-1]) / (len(xx) - 1))
    ridge[-1] = 0.0 if constant else 1.0
    solved = np.linalg.solve(xx + np.diag(ridge), xy)
    return jnp.asarray(solved[:-1], jnp.float32), jnp.asarray(solved[-1], jnp.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Learning on what it makes


class Lesson:
    """The teacher, the pool and the steps; arrays of the pool are the host's, because single images come and go."""

    def __init__(
        self,
        network: vgg.VGG,
        params: vgg.Params,
        components: dict[str, jax.Array],
        colours: dict[str, jax.Array],
        settings: Settings,
    ):
        self.settings = settings
        self.optimizer = optax.chain(optax.clip_by_global_norm(2.0), optax.scale_by_adam(b2=0.99))

        def student(learned, images):
            return STUDENT.apply(learned | {"input": colours}, images, TAPS)

        def teacher(images):
            return {tap: x @ components[tap] for tap, x in network.apply(params, images, TAPS).items()}

        def style_transfer(features, aims):
            """The loss of each image: aims are the style's Gram matrices, the content's features and their weight."""
            style = sum(relative(gram_matrix(features[tap]), aims["gram"][tap]) for tap in STYLE) / len(STYLE)
            return style + aims["content_weight"] * relative(features["relu4_1"], aims["content"])

        def aims_of(features, count, content_weight):
            """Of the features of `count` styles and as many contents."""
            return {
                "gram": {tap: gram_matrix(features[tap][:count]) for tap in STYLE},
                "content": features["relu4_1"][count:],
                "content_weight": content_weight,
            }

        @jax.jit
        def move(learned, made, example, content_weight, rate, done):
            aims = aims_of(student(learned, example), len(made["image"]), content_weight)

            def loss(image):
                roughness = jnp.mean(jnp.diff(image, axis=1) ** 2, (1, 2, 3)) + jnp.mean(
                    jnp.diff(image, axis=2) ** 2, (1, 2, 3)
                )
                return 1e4 * jnp.sum(style_transfer(student(learned, image), aims) + 0.01 * roughness)

            def once(i, made):
                gradient, n = jax.grad(loss)(made["image"]), (done + i + 1)[:, None, None, None]
                mu, nu = 0.9 * made["mu"] + 0.1 * gradient, 0.99 * made["nu"] + 0.01 * gradient**2
                change = jax.vmap(spread)(mu / (1 - 0.9**n) / (jnp.sqrt(nu / (1 - 0.99**n)) + 1e-8))
                return {
                    "image": jnp.clip(made["image"] - rate[:, None, None, None] * change, -1, 1),
                    "mu": mu,
                    "nu": nu,
                }

            return lax.fori_loop(0, settings.moves, once, made)

        def told_of(images, gram, content, content_weight):
            features = teacher(images)
            aims = {"gram": gram, "content": content, "content_weight": content_weight}
            return jnp.sum(style_transfer(features, aims)), features

        @jax.jit
        def teach(images, few, gram, content, content_weight):
            """The teacher's features of all, and its derivatives of the first few."""
            direction, first = jax.grad(told_of, has_aux=True)(few, gram, content, content_weight)
            rest = teacher(images[len(few) :])
            return {tap: jnp.concatenate([first[tap], rest[tap]]) for tap in TAPS}, direction

        def errors_of(learned, images, features):
            found, errors = student(learned, images), {}
            for tap in TAPS:
                errors[tap] = jnp.mean(relative(found[tap], features[tap], 1e-3 * features[tap][0].size))
                if tap in STYLE:
                    errors[f"gram {tap}"] = jnp.mean(relative(gram_matrix(found[tap]), gram_matrix(features[tap])))
            return found, errors

        def loss(learned, images, features, direction, content_weight):
            """images: `batch_size` that are made, then `examples` styles and contents."""
            found, errors = errors_of(learned, images, features)
            n, few = settings.batch_size, len(direction)
            chosen = {
                tap: jnp.concatenate([found[tap][n : n + few], found[tap][n + settings.examples :][:few]])
                for tap in TAPS
            }
            aims = aims_of(chosen, few, content_weight[:few])
            own = jax.grad(lambda image: jnp.sum(style_transfer(student(learned, image), aims)))(images[:few])
            # Of single pixels a small network cannot know; of squares it can.
            coarse = [relative(average(own, k), average(direction, k)) for k in (2, 4, 8)]
            errors["direction"] = jnp.mean(jnp.stack(coarse))
            total = sum(
                settings.gram_weight * x if name.startswith("gram") else x
                for name, x in errors.items()
                if name != "direction"
            )
            return total + settings.derivative_weight * jnp.minimum(errors["direction"], 3.0), errors

        @jax.jit
        def learn(learned, mean, opt_state, rate, forget, *lesson):
            gradients, errors = jax.grad(loss, has_aux=True)(learned, *lesson)
            updates, opt_state = self.optimizer.update(gradients, opt_state)
            learned = jax.tree.map(lambda x, change: x - rate * change, learned, updates)
            return learned, jax.tree.map(lambda x, y: forget * x + (1 - forget) * y, mean, learned), opt_state, errors

        self._move, self._teach, self._learn, self._features = move, teach, learn, jax.jit(teacher)
        self.errors_on_pictures = jax.jit(lambda learned, images: errors_of(learned, images, teacher(images))[1])

    # -- the pool: what is being made, of what, and what the teacher says of these

    def fresh(self, rng: np.random.Generator, sets: list[np.ndarray], count: int) -> dict[str, Any]:
        images = [self.begin(rng, sets) for _ in range(count)]
        return jax.tree.map(lambda *x: np.stack(x), *images)

    def begin(self, rng: np.random.Generator, sets: list[np.ndarray]) -> dict[str, Any]:
        """An image to be made at half the size of its content and style, which its second life takes up."""
        side = 2 * self.settings.crop
        whole = np.stack([crop(rng, sets, side, paintings) for paintings in (0.8, 0.25)])
        small = np.array(data_module.to_float(whole)).reshape(2, side // 2, 2, side // 2, 2, 3).mean((2, 4))
        noise = np.clip(0.3 * rng.normal(size=small[1].shape), -1, 1)
        return self._entry(rng, whole, small, small[1] if rng.random() < 0.8 else noise, grown=False)

    def enlarge(self, rng: np.random.Generator, entry: dict[str, Any]) -> dict[str, Any]:
        """What has been made at half the size, a crop of it enlarged, beside the content there and the style."""
        side = self.settings.crop
        (top, left), (y, x) = rng.integers(0, side // 2 + 1, 2), rng.integers(0, side + 1, 2)
        piece = entry["made"]["image"][top : top + side // 2, left : left + side // 2]
        image = np.asarray(jax.image.resize(piece, (side, side, 3), "linear"))
        whole = np.array(data_module.to_float(entry["whole"]))
        content = whole[1, 2 * top : 2 * top + side, 2 * left : 2 * left + side]
        return self._entry(rng, entry["whole"], np.stack([whole[0, y : y + side, x : x + side], content]), image, True)

    def _entry(self, rng, whole, example, image, grown) -> dict[str, Any]:
        told = self._features(jnp.asarray(example))
        image = np.asarray(image, np.float32)
        return {
            "whole": whole,
            "example": example.astype(np.float32),
            "told": {tap: np.asarray(x) for tap, x in told.items()},
            "made": {"image": image, "mu": np.zeros_like(image), "nu": np.zeros_like(image)},
            "content_weight": np.float32(10 ** rng.uniform(-2.2, -0.9)),
            "rate": np.float32(10 ** rng.uniform(-1.9, -1.1)),
            "visits": np.int32(0),
            "life": np.int32(rng.integers(3, 24)),
            "grown": np.bool_(grown),
        }

    def step(self, state: dict[str, Any], sets: list[np.ndarray], step: int) -> dict[str, jax.Array]:
        """Moves some images of the pool, learns where that has led, and renews those that have lived. Changes state."""
        settings, pool = self.settings, state["pool"]
        rng = np.random.default_rng((settings.seed, step))
        chosen = rng.choice(settings.pool, settings.batch_size, replace=False)
        made, example, told = (jax.tree.map(lambda x: x[chosen], pool[name]) for name in ("made", "example", "told"))
        both = np.concatenate([example[:, 0], example[:, 1]])
        weight, rate = pool["content_weight"][chosen], pool["rate"][chosen]
        done = (pool["visits"][chosen] * settings.moves).astype(np.float32)
        made = self._move(state["student"], made, both, weight, rate, done)

        few, n = settings.derivatives, settings.examples
        gram = {tap: gram_matrix(told[tap][:few, 0]) for tap in STYLE}
        images = made["image"]
        taught, direction = self._teach(images, images[:few], gram, told["relu4_1"][:few, 1], weight[:few])
        seen = jnp.concatenate([images, example[:n, 0], example[:n, 1]])
        taught = {tap: jnp.concatenate([taught[tap], told[tap][:n, 0], told[tap][:n, 1]]) for tap in TAPS}
        progress = step / settings.steps
        speed = settings.learning_rate * min(1, (step + 1) / 50) * (0.51 + 0.49 * np.cos(np.pi * progress))
        forget = min(0.995, (step + 1) / (step + 10))
        lesson = (seen, taught, direction, weight)
        state["student"], state["mean"], state["opt"], errors = self._learn(
            state["student"], state["mean"], state["opt"], speed, forget, *lesson
        )
        for j, i in enumerate(chosen):
            for name, x in made.items():
                pool["made"][name][i] = x[j]
            pool["visits"][i] += 1
            if pool["visits"][i] >= pool["life"][i]:
                entry = jax.tree.map(lambda x, i=i: x[i], pool)
                again = not entry["grown"] and rng.random() < 0.7
                new = self.enlarge(rng, entry) if again else self.begin(rng, sets)
                jax.tree.map(lambda x, y, i=i: x.__setitem__(i, y), pool, new)
        return errors


def relative(found: jax.Array, target: jax.Array, floor: float = 1e-6) -> jax.Array:
    """Squared error over the squares of the target, of each image."""
    axes = tuple(range(1, found.ndim))
    return jnp.sum((found - target) ** 2, axes) / (jnp.sum(target**2, axes) + floor)


def average(images: jax.Array, k: int) -> jax.Array:
    b, h, w, c = images.shape
    return images.reshape(b, h // k, k, w // k, k, c).mean((2, 4))


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
