"""The reader that ships: how often it is right, what it does with what is no glyph, and its arithmetic and its file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax import data
from ganstyle_jax.data import glyphs
from ganstyle_jax.features import glyph_reader
from ganstyle_jax.io.files import UserError

DIGITS = glyphs.CHARACTERS[:10]
SEED = 31  # not one of those that the reader was trained on or measured with


@pytest.fixture(scope="module")
def script():
    return load_script("train_glyph_reader")


@pytest.fixture(scope="module")
def colour():
    return draw(1500)


def draw(count, size=32, characters=glyphs.CHARACTERS, **kind):
    drawn = [glyphs.draw(SEED, i, size, characters, **kind) for i in range(count)]
    return {name: np.stack([example[name] for example in drawn]) for name in drawn[0]}


def right(drawn, characters=glyphs.CHARACTERS):
    """Share of glyphs that are read as what they are, and of those that are readable."""
    reading = glyph_reader.read(drawn["image"], characters)
    truth = glyph_reader.class_labels(drawn["label"], characters)
    return (reading.labels == truth).mean(), reading.readable.mean()


def test_reads_fresh_glyphs_and_their_factors(colour):
    accuracy, readable = right(colour)
    assert accuracy >= 0.99 and readable >= 0.985, (accuracy, readable)
    reading = glyph_reader.read(colour["image"])
    assert (reading.fonts.argmax(1) == colour["font"]).mean() > 0.65  # by chance 0.1
    assert np.abs(reading.slant - colour["slant"]).mean() < 3  # degrees; 6 if it always said 0
    assert np.abs(reading.colour - colour["colour"]).mean() < 0.09  # 0.3 if it always said grey
    assert np.abs(reading.ground - colour["ground"]).mean() < 0.06


@pytest.mark.parametrize("kind", ["grey", "night"])
def test_reads_grey_glyphs_and_black_grounds(kind):
    drawn = draw(600, **{kind: True})
    assert drawn["image"].shape[-1] == (1 if kind == "grey" else 3)
    accuracy, readable = right(drawn)
    assert accuracy >= 0.985 and readable >= 0.98, (accuracy, readable)


def test_reads_digits_as_digits():
    drawn = draw(600, characters=DIGITS)
    reading = glyph_reader.read(drawn["image"], DIGITS)
    assert reading.characters == DIGITS and reading.probabilities.shape == (600, 10)
    accuracy, readable = right(drawn, DIGITS)
    assert accuracy >= 0.99 and readable >= 0.985, (accuracy, readable)


@pytest.mark.parametrize("size", [16, 64])
def test_reads_other_sizes(size):
    accuracy, readable = right(draw(300, size))
    assert accuracy >= 0.97 and readable >= 0.95, (accuracy, readable)


def test_noise_and_blends_are_unreadable(script, colour):
    drawn = {name: x[:600] for name, x in colour.items()}
    colours = np.concatenate([drawn["colour"], drawn["ground"]], axis=1) * 2 - 1
    pool = {"image": data.to_float(drawn["image"]), "colours": jnp.asarray(colours, jnp.float32)}
    labels = glyph_reader.class_labels(drawn["label"])
    differ = labels[:300] != labels[300:]
    first, second = ({name: jnp.asarray(x[half]) for name, x in pool.items()} for half in np.split(np.arange(600), 2))
    made = jax.jit(script.unreadable)(jax.random.key(0), first, second)
    kinds = ("noise", "coarse_noise", "blots", "blend", "pieces", "blurred", "bare")
    reading = glyph_reader.read(np.concatenate([np.asarray(made[name])[differ] for name in kinds]))
    for name, readable in zip(kinds, np.split(reading.readable, len(kinds)), strict=True):
        assert readable.mean() < 0.1, (name, readable.mean())


def test_a_clear_letter_is_no_digit():
    """Restricted to digits, an S that is like a 5 may be one; a K or W is like none."""
    drawn = draw(300, characters="KWMXN")
    reading = glyph_reader.read(drawn["image"], DIGITS)
    assert (~reading.readable).mean() > 0.95


def test_uint8_float_and_grey_in_three_channels_are_the_same(colour):
    images = colour["image"][:20]
    first, second = glyph_reader.read(images), glyph_reader.read(data.to_float(images))
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-5)
    grey = draw(20, grey=True)["image"]
    first, second = glyph_reader.read(grey), glyph_reader.read(np.repeat(grey, 3, axis=3))
    np.testing.assert_allclose(first.features, second.features, atol=1e-5)


def test_chunks_do_not_matter(colour):
    whole, alone = glyph_reader.read(colour["image"][:300]), glyph_reader.read(colour["image"][256:300])
    np.testing.assert_allclose(whole.features[256:], alone.features, atol=1e-5)
    assert whole.features.shape == (300, 128) and whole.features.min() >= 0


def test_classes_are_the_characters_without_those_that_look_alike():
    assert glyph_reader.classes() == "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"
    assert glyph_reader.classes(DIGITS) == DIGITS and glyph_reader.classes("OAI") == "01A"
    labels = glyph_reader.class_labels(np.arange(36))
    found = [glyph_reader.CLASSES[i] for i in labels]
    assert "".join(found) == "0123456789ABCDEFGH1JKLMN0PQRSTUVWXYZ"
    with pytest.raises(ValueError, match="must be some of"):
        glyph_reader.classes("ab")


def test_shares_are_those_that_are_drawn(colour):
    shares = glyph_reader.shares()
    assert shares.sum() == pytest.approx(1) and shares[0] == shares[1] == pytest.approx(2 / 36)
    drawn = np.bincount(glyph_reader.class_labels(colour["label"]), minlength=34) / len(colour["label"])
    np.testing.assert_allclose(drawn, shares, atol=5 * np.sqrt(shares.max() / len(colour["label"])))
    np.testing.assert_allclose(glyph_reader.shares(DIGITS), 0.1)


def test_probabilities_of_fewer_characters_by_hand():
    """By Bayes: the class's share in the set over its share in training, times the softmax."""
    logits = np.zeros((1, 35))
    logits[0, glyph_reader.CLASSES.index("5")], logits[0, glyph_reader.CLASSES.index("S")] = 4, 6
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    prior = np.where(np.arange(34) < 2, 2, 1) / 36
    expected = np.where(np.arange(34) < 10, 0.99 / 10, 0.01 * prior / prior[10:].sum())
    joint = np.append(p[:-1] * expected / prior, p[-1])
    found = glyph_reader.probabilities(logits, DIGITS)
    np.testing.assert_allclose(found[0], (joint / joint.sum())[:10], rtol=1e-5)
    assert found[0].argmax() == 5 and found.sum() < 1
    everything = glyph_reader.probabilities(logits, temperature=2.0)
    half = np.exp(logits[0] / 2)
    np.testing.assert_allclose(everything[0], (half / half.sum())[:34], rtol=1e-5)


def test_network_against_pytorch(torch, colour):
    """The same weights, layer by layer, in NCHW."""
    params = glyph_reader.load().params
    images = data.to_float(colour["image"][:8])
    t = lambda x: torch.from_numpy(np.array(x))  # noqa: E731
    x = t(images).permute(0, 3, 1, 2)
    # pixel_unshuffle orders (channel, row, column) and the fold (row, column, channel)
    x = torch.nn.functional.pixel_unshuffle(x, 2).reshape(8, 3, 4, 16, 16).transpose(1, 2).reshape(8, 12, 16, 16)
    for i in range(1, 4):
        x = x if i == 1 else torch.nn.functional.max_pool2d(x, 2)
        kernel = t(params[f"conv{i}"]["kernel"]).permute(3, 2, 0, 1)
        x = torch.relu(torch.nn.functional.conv2d(x, kernel, t(params[f"conv{i}"]["bias"]), padding=1))
    x = x.permute(0, 2, 3, 1).reshape(8, -1)
    features = torch.relu(x @ t(params["features"]["kernel"]) + t(params["features"]["bias"]))
    found = jax.jit(glyph_reader.apply)(params, jnp.asarray(images))
    np.testing.assert_allclose(found["features"], features.numpy(), rtol=1e-4, atol=1e-4)
    logits = features @ t(params["class"]["kernel"]) + t(params["class"]["bias"])
    np.testing.assert_allclose(found["class"], logits.numpy(), rtol=1e-4, atol=1e-3)


def test_file_is_small_comes_back_and_says_how_it_was_made(tmp_path):
    reader = glyph_reader.load()
    assert glyph_reader.SHIPPED.stat().st_size < 1_000_000
    assert reader.record["accuracy"]["colour"] >= 0.99 and 0.5 <= reader.threshold < 1
    glyph_reader.save(tmp_path / "copy.safetensors", reader)
    copy = glyph_reader.load(tmp_path / "copy.safetensors")
    jax.tree.map(np.testing.assert_array_equal, copy.params, reader.params)
    assert dataclasses.replace(copy, params={}) == dataclasses.replace(reader, params={})


def test_file_of_something_else_is_told(tmp_path):
    from ganstyle_jax.features.weights import COMPACT

    (tmp_path / "broken.safetensors").write_bytes(b"12345678{")
    for path, words in (
        (tmp_path / "missing.safetensors", "cannot read"),
        (tmp_path / "broken.safetensors", "cannot read"),
        (COMPACT, "no reader of glyphs"),
    ):
        with pytest.raises(UserError, match=words):
            glyph_reader.load(path)


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((2, 32, 32)), "shape"),
        (np.zeros((2, 32, 32, 4)), "shape"),
        (np.zeros((2, 32, 30, 3)), "shape"),
        (np.zeros((0, 32, 32, 3)), "shape"),
        (np.zeros((2, 32, 32, 3), int), "dtype int64"),
        (np.full((2, 32, 32, 3), 255.0), "from 255 to 255"),
        (np.full((2, 32, 32, 3), np.nan), "from nan to nan"),
    ],
)
def test_images_that_are_refused(images, words):
    with pytest.raises(UserError, match=words):
        glyph_reader.read(images)


def test_training_moves_turns_and_recolours_as_it_says(script):
    """A bar, turned anticlockwise by `disturb`, is found at that angle by its moments; colours too."""
    picture = np.full((256, 32, 32, 3), -0.5, np.float32)
    picture[:, 6:26, 14:18] = 0.5
    images, angle, gain, shift = jax.jit(script.disturb)(jax.random.key(0), jnp.asarray(picture))
    rows, columns = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    found = []
    for image, g, s in zip(np.asarray(images), np.asarray(gain), np.asarray(shift), strict=True):
        ink = np.clip(((image - s) / g).mean(-1) + 0.5, 0, 1)
        ink = np.where(ink > 0.5, ink, 0)
        r, c = rows - (rows * ink).sum() / ink.sum(), columns - (columns * ink).sum() / ink.sum()
        rr, rc, cc = (r * r * ink).sum(), (r * c * ink).sum(), (c * c * ink).sum()
        found.append(np.rad2deg(0.5 * np.arctan2(2 * rc, rr - cc)))  # rows point down: positive leans anticlockwise
    slope, offset = np.polyfit(np.asarray(angle), found, 1)
    assert slope == pytest.approx(1, abs=0.1) and abs(offset) < 0.5  # warps and noise are about 1 degree each


def test_blur_is_scipys_and_sampling_in_place_changes_nothing(script):
    from scipy.ndimage import gaussian_filter

    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    sample = jax.jit(script.sample)
    found = jax.jit(script.blur)(jnp.asarray(images), jnp.array([1.0, 2.0]))
    for i, sigma in enumerate((1.0, 2.0)):
        wanted = gaussian_filter(images[i], (sigma, sigma, 0), mode="constant", truncate=8)
        weight = gaussian_filter(np.ones((32, 32)), sigma, mode="constant", truncate=8)[..., None]
        np.testing.assert_allclose(found[i], wanted / weight, atol=1e-5)
    rows, columns = jnp.meshgrid(jnp.arange(32.0), jnp.arange(32.0), indexing="ij")
    same = sample(jnp.asarray(images), jnp.stack([rows] * 2), jnp.stack([columns] * 2))
    np.testing.assert_allclose(same, images, atol=1e-6)
    between = sample(jnp.asarray(images), jnp.stack([rows + 0.5] * 2), jnp.stack([columns] * 2))
    np.testing.assert_allclose(between[:, :-1], (images[:, 1:] + images[:, :-1]) / 2, atol=1e-6)


def test_calibration_error_by_hand(script):
    confidence, truth = np.array([0.9, 0.9, 0.9, 0.9, 0.1]), np.array([True, True, True, False, False])
    assert script.calibration_error(confidence, truth) == pytest.approx(0.8 * 0.15 + 0.2 * 0.1)


@pytest.mark.slow
def test_script_trains_a_few_steps(script, tmp_path, home):
    settings = script.Settings(
        out=tmp_path / "reader.safetensors",
        glyphs=200,
        steps=2,
        batch_size=8,
        held_out=100,
        test_glyphs=40,
        json=tmp_path / "r.json",
    )
    script.main(settings)
    assert glyph_reader.load(tmp_path / "reader.safetensors").record["steps"] == 2
    assert (tmp_path / "r.json").is_file()


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"temperature": "warm"}, "does not say at which temperature"),
        ({"threshold": -1}, "does not say at which temperature"),
        ({"record": []}, "does not say at which temperature"),
        ("[" * 100_000, "what it says of itself is nested too deeply"),
        ("3", "what it says of itself is 3, where a JSON object was expected"),
    ],
)
def test_what_a_file_says_of_itself_is_checked(tmp_path, changed, said):
    import json

    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with safe_open(glyph_reader.SHIPPED, "numpy") as file:
        about = json.loads(file.metadata()["glyph_reader"])
    told = changed if isinstance(changed, str) else json.dumps(about | changed)
    save_file(load_file(glyph_reader.SHIPPED), tmp_path / "reader", {"glyph_reader": told})
    with pytest.raises(UserError, match=said):
        glyph_reader.load(tmp_path / "reader")
