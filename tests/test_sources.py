"""What `--data` names: one source or several, each with an order of its own."""

import jax
import numpy as np
import pytest
import small_prior
import small_translator
import small_wgan

from ganstyle_jax import contract
from ganstyle_jax.data import Source
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
        (["a=x", "c=y"], TRANSLATOR, "give --data a=SOURCE b=SOURCE, got --data a=x c=y"),
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
        ("photos", TRANSLATOR, "learns from 2 sets of pictures: give --data a=SOURCE b=SOURCE, got photos"),
        ({"a": "x"}, TRANSLATOR, "give --data a=SOURCE b=SOURCE, got a"),
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
