"""What `--data` names: one source or several, each with an order of its own."""

import tarfile
import zipfile

import jax
import numpy as np
import pytest
import small_prior
import small_translator
import small_wgan

from ganstyle_jax import contract
from ganstyle_jax.data import Source
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import sources
from ganstyle_jax.loop.feed import Feed
from ganstyle_jax.loop.settings import Loop
from ganstyle_jax.loop.step import batch_of, make_mesh

WGAN, TRANSLATOR, PRIOR = map(contract.of, (small_wgan, small_translator, small_prior))
CFG = {WGAN: small_wgan.Config(), TRANSLATOR: small_translator.Config(), PRIOR: small_prior.Config()}


@pytest.mark.parametrize(
    "words, method, expected",
    [
        (["photos"], WGAN, "photos"),
        (["real=photos"], WGAN, {"real": "photos"}),
        (["no source/a=b"], WGAN, "no source/a=b"),  # a path
        ([], PRIOR, None),
        (["a=horses", "b=zebras.zip/train"], TRANSLATOR, {"a": "horses", "b": "zebras.zip/train"}),
        (["b=x=y", "a=z"], TRANSLATOR, {"a": "z", "b": "x=y"}),
    ],
)
def test_words_of_the_command_line(words, method, expected):
    assert sources.parse(words, method, CFG[method]) == expected


@pytest.mark.parametrize(
    "words, method, message",
    [
        (["a=x", "a=y"], TRANSLATOR, "names a source twice: a=x a=y"),
        (["a=x", "c=y"], TRANSLATOR, "give --data a=SOURCE b=SOURCE, or one folder or archive that has trainA"),
        (["a=x", "c=y"], TRANSLATOR, "trainB, got --data a=x c=y"),
        (["x", "y"], WGAN, "give --data SOURCE, got --data x y"),
        (["x", "y"], PRIOR, "needs no data, got --data x y"),
        (["pics=photos"], WGAN, "give --data SOURCE, got --data pics=photos"),
    ],
)
def test_words_that_name_no_sources(words, method, message):
    with pytest.raises(UserError) as caught:
        sources.parse(words, method, CFG[method])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "given, method, message",
    [
        (None, WGAN, "learns from one set of pictures: give --data SOURCE, got none"),
        (
            "photos",
            TRANSLATOR,
            "learns from 2 sets of pictures: give --data a=SOURCE b=SOURCE, or one folder or archive that has trainA "
            "and trainB, got photos",
        ),
        (
            {"a": "x"},
            TRANSLATOR,
            "give --data a=SOURCE b=SOURCE, or one folder or archive that has trainA and trainB, got",
        ),
        ({"a": "x", "b": "y", "c": "z"}, TRANSLATOR, "got a, b, c"),
        ("photos", PRIOR, "needs no data, got photos"),
    ],
)
def test_sources_that_are_not_those_of_the_method(given, method, message):
    with pytest.raises(UserError) as caught:
        sources.named(given, method, CFG[method])
    assert message in str(caught.value)


def test_named_in_the_methods_order():
    assert list(sources.named({"b": 1, "a": 2}, TRANSLATOR, CFG[TRANSLATOR])) == ["a", "b"]
    assert sources.named("x", WGAN, CFG[WGAN]) == {"real": "x"}
    assert sources.named(None, PRIOR, CFG[PRIOR]) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Two sets in one place


def place(tmp_path, kind, names):
    """A folder or an archive with pictures of these names; a name that ends in / is a folder without any."""
    root = tmp_path / "tree"
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            images.save_png(path, np.full((4, 4, 3), i, np.uint8))
    if kind == "folder":
        return root
    packed = tmp_path / f"pair.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            for name in names:
                archive.write(root / name, name)
    else:
        with tarfile.open(packed, "w:gz" if kind == "tgz" else "w") as archive:
            for name in names:
                archive.add(root / name, name, recursive=False)
    return packed


PARTS = ("trainA/0.png", "trainA/1.png", "trainB/0.png", "testA/0.png", "testB/0.png", "testB/1.png")
KINDS = pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tgz"])


@KINDS
@pytest.mark.parametrize("top", ["", "face2portrait/"])
def test_one_place_holds_the_two_sources(tmp_path, kind, top):
    """In the order of the method's sources, whatever they are called; test parts by their name."""
    given = place(tmp_path, kind, [top + name for name in PARTS])
    for spec in (str(given), given, f"{given}/{top}".rstrip("/")):
        found = sources.named(spec, TRANSLATOR, CFG[TRANSLATOR])
        assert found == {"a": f"{given}/{top}trainA", "b": f"{given}/{top}trainB"}
    opened = sources.opened(found, TRANSLATOR, CFG[TRANSLATOR], 0)
    assert {name: source.size for name, source in opened.items()} == {"a": 2, "b": 1}
    assert (opened["b"].read(0)["image"] == 2).all()
    test = sources.named(f"{given}/{top}test", TRANSLATOR, CFG[TRANSLATOR])
    assert test == {"a": f"{given}/{top}testA", "b": f"{given}/{top}testB"}
    assert sources.opened(test, TRANSLATOR, CFG[TRANSLATOR], 0)["b"].size == 2


def test_each_of_them_has_an_order_of_its_own(tmp_path):
    given = place(tmp_path, "zip", [f"train{side}/{i:02d}.png" for side in "AB" for i in range(12)])
    cfg = CFG[TRANSLATOR]
    opened = sources.opened(sources.named(given, TRANSLATOR, cfg), TRANSLATOR, cfg, 0)
    batches = sources.batched(opened, TRANSLATOR, cfg, Loop(batch_size=4))
    orders = [np.concatenate([batches[name].indices(t) for t in range(3)]).tolist() for name in "ab"]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12)) and orders[0] != orders[1]


@KINDS
def test_small_letters_and_pictures_beside_them(tmp_path, kind):
    given = place(tmp_path, kind, ["traina/cats/0.png", "trainb/0.png", "preview.png", "more/trainer/0.png"])
    assert sources.named(given, TRANSLATOR, CFG[TRANSLATOR]) == {"a": f"{given}/traina", "b": f"{given}/trainb"}


@KINDS
@pytest.mark.parametrize(
    "names, part, message",
    [
        (["trainA/0.png", "testB/0.png"], "", "{place} has pictures in trainA and none in trainB"),
        (["set/trainA/", "set/trainB/0.png"], "", "{place}/set has pictures in trainB and none in trainA"),
        ([*PARTS[:4], "testB/"], "/test", "{place} has pictures in testA and none in testB"),
        (
            ["x/trainA/0.png", "x/trainB/0.png", "y/trainA/0.png", "y/trainB/0.png"],
            "",
            "{place} has trainA and trainB in 2 places, {place}/x and {place}/y, ...: name one of them",
        ),
        (["horses/0.png", "zebras/0.png"], "", "that has trainA and trainB, got {place}"),
        (PARTS, "/val", "that has trainA and trainB, got {place}/val"),
    ],
)
def test_an_empty_side_is_told(tmp_path, kind, names, part, message):
    given = place(tmp_path, kind, names)
    with pytest.raises(UserError) as caught:
        sources.named(f"{given}{part}", TRANSLATOR, CFG[TRANSLATOR])
    assert message.format(place=given) in str(caught.value)


def test_one_of_two_places_is_named(tmp_path):
    given = place(tmp_path, "zip", [f"{top}/train{side}/0.png" for top in "xy" for side in "AB"])
    found = sources.named(f"{given}/y", TRANSLATOR, CFG[TRANSLATOR])
    assert found == {"a": f"{given}/y/trainA", "b": f"{given}/y/trainB"}


@pytest.mark.parametrize("spec", ["glyphs", "tfds:cycle_gan", "pictures.npz", "nowhere/pair.zip", "a\0b"])
def test_what_cannot_hold_two_sets_is_no_place_of_two(tmp_path, monkeypatch, spec):
    np.savez(tmp_path / "pictures.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="give --data a=SOURCE b=SOURCE"):
        sources.named(spec, TRANSLATOR, CFG[TRANSLATOR])


def test_unpaired_faces_and_portraits(data_dir):
    archive = data_dir / "datasets/face2portrait_128px.zip"
    cfg = CFG[TRANSLATOR]
    for spec, size in ((archive, 777), (f"{archive}/test", 100)):
        opened = sources.opened(sources.named(spec, TRANSLATOR, cfg), TRANSLATOR, cfg, 0)
        assert [source.size for source in opened.values()] == [size, size]


def test_described():
    assert sources.described({"real": "photos.zip"}) == "photos.zip"
    assert sources.described({"a": "x", "b": "y"}) == {"a": "x", "b": "y"}
    assert sources.described({}) == {}


def noise(size: int, seed: int, side: int = 16, **more) -> Source:
    images = np.random.default_rng(seed).integers(0, 256, (size, side, side, 3)).astype(np.uint8)
    return Source(f"noise {seed}", images.shape[1:], images.dtype, size, None, lambda i: {"image": images[i]}, **more)


def test_open_sources_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"wants pictures of 16 x 16 pixels .* as b, and those of noise 1 have 8 x 8"):
        sources.opened({"a": noise(4, 0), "b": noise(4, 1, side=8)}, TRANSLATOR, CFG[TRANSLATOR], 0)


def test_each_source_has_an_order_and_a_length_of_its_own():
    loop, cfg = Loop(batch_size=4), CFG[TRANSLATOR]
    batches = sources.batched({"a": noise(8, 0), "b": noise(12, 1)}, TRANSLATOR, cfg, loop)
    a = np.concatenate([batches["a"].indices(t) for t in range(2)])
    b = np.concatenate([batches["b"].indices(t) for t in range(3)])
    assert sorted(a) == list(range(8)) and sorted(b) == list(range(12))  # an epoch of each
    same_size = sources.batched({"a": noise(12, 0), "b": noise(12, 1)}, TRANSLATOR, cfg, loop)
    assert any(list(same_size["a"].indices(t)) != list(same_size["b"].indices(t)) for t in range(3))
    # A single source has the order that it always had.
    alone = sources.batched({"real": noise(12, 0)}, WGAN, CFG[WGAN], Loop(batch_size=4, seed=3))["real"]
    assert alone.seed == 3 and alone.batch_size == 4 * CFG[WGAN].critic_steps


@pytest.mark.parametrize("where", ["yes", "no"])
def test_further_arrays_of_a_source_reach_the_step(where):
    """Tokens, say, beside the pictures: whatever the source says that it has."""
    plain = noise(8, 0)
    tokens = np.arange(8 * 5, dtype=np.int32).reshape(8, 5)
    captioned = noise(8, 0, others={"tokens": ((5,), np.dtype(np.int32))})
    object.__setattr__(captioned, "read", lambda i: plain.read(i) | {"tokens": tokens[i], "aside": np.zeros(3)})
    loop = Loop(batch_size=4, data_on_device=where, devices=1, steps_per_dispatch=2, workers=1)
    batches = sources.batched({"a": captioned, "b": plain}, TRANSLATOR, CFG[TRANSLATOR], loop)
    feed = Feed(batches, loop, make_mesh(loop))
    stored = feed.load()
    with feed.stream(0, 2) as chunks:
        chunk = chunks(0, 2)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (stored, chunk))
    assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), shapes, feed.abstract())
    batch = batch_of(stored, chunk, 1)
    order = batches["a"].indices(1)
    np.testing.assert_array_equal(batch["a"]["tokens"], tokens[order])
    assert set(batch["a"]) == {"image", "tokens"} and set(batch["b"]) == {"image"}
    np.testing.assert_allclose(batch["a"]["image"], np.stack([captioned[i]["image"] for i in order]), atol=1e-6)
