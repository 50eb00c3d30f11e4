"""The training images nearest to samples."""

import dataclasses

import numpy as np
import pytest

from ganstyle_jax import data
from ganstyle_jax.judge.metrics import memorisation

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def source():
    return data.open_source("glyphs:digits", 16, 3, 0)


def images_of(source, indices):
    return np.stack([source[i]["image"] for i in indices])


def test_nearest_is_brute_force():
    rng = np.random.default_rng(0)
    queries, among = rng.normal(size=(300, 5)), rng.normal(size=(40, 5))
    distances = np.sqrt(((queries[:, None] - among) ** 2).mean(-1))
    indices, found = memorisation.nearest(queries, among, 3)
    np.testing.assert_array_equal(indices, np.argsort(distances, 1)[:, :3])
    np.testing.assert_allclose(found, np.sort(distances, 1)[:, :3], rtol=1e-12)
    indices, found = memorisation.nearest(among, among, 1, skip=np.arange(40))
    own = np.sqrt(((among[:, None] - among) ** 2).mean(-1)) + np.diag(np.full(40, np.inf))
    np.testing.assert_array_equal(indices[:, 0], own.argmin(1))


def test_near_copies_are_told_from_copies_in_float32():
    """By |a|^2 - 2ab + |b|^2 alone both would come out as 0, or as NaN."""
    point = np.full((1, 4), 1e4, np.float32)
    _, found = memorisation.nearest(point, np.concatenate([point + np.float32(1 / 64), point]), 2)
    np.testing.assert_allclose(found, [[0, 1 / 64]], rtol=1e-9)


def test_copies_are_found_and_counted(source):
    samples = images_of(source, range(0, 40, 2))
    found = memorisation.check(samples, source, 60, k=3, shown=20)
    np.testing.assert_allclose(found.neighbours[:, 0], found.samples, atol=1e-6)
    assert sorted(picture.tobytes() for picture in found.samples) == sorted(picture.tobytes() for picture in samples)
    assert len(found.sample_distances) == 20 and (np.diff(found.distances[:, 0]) >= 0).all()
    assert found.distances[:, 0].max() < 1e-3 < found.distances[:, 1].min()
    assert found.pixel_distances[:, 0].max() < 1e-3
    assert found.compared == 60 and found.total is None
    assert len(found.real_distances) == 60 and found.real_distances.min() > 1e-3  # no image is its own neighbour
    assert memorisation.share_too_near(found) == 1


def test_new_images_of_the_same_kind_are_as_far_as_real_ones(source):
    """Two-sided: glyphs that are not among those looked through lie neither nearer nor farther than these do."""
    found = memorisation.check(images_of(source, range(1000, 1100)), source, 200)
    assert memorisation.share_too_near(found) < 0.06  # of 100, where 1 is expected
    assert np.median(found.sample_distances) == pytest.approx(np.median(found.real_distances), rel=0.15)
    assert found.samples.shape == (16, 16, 16, 3) and found.neighbours.shape == (16, 4, 16, 16, 3)
    np.testing.assert_allclose(np.sort(found.sample_distances)[:16], found.distances[:, 0])


def test_a_flipped_and_a_shifted_copy_are_nearer_than_other_images(source):
    original = images_of(source, range(8))
    for changed in (original[:, :, ::-1], np.roll(original, 1, axis=2)):
        found = memorisation.check(changed, source, 100)
        close = []
        for sample, neighbours in zip(found.samples, found.neighbours, strict=True):
            (i,) = np.flatnonzero((changed == sample).all((1, 2, 3)))
            close.append((np.abs(neighbours - original[i]).max((1, 2, 3)) < 1e-6).any())
        assert np.mean(close) >= 0.75  # among its four nearest


def test_a_part_of_a_finite_set_and_too_few_images(source):
    finite = dataclasses.replace(source, size=50)
    assert memorisation.check(images_of(source, [0]), finite, 20).total == 50
    assert memorisation.check(images_of(source, [0]), finite, 5000).compared == 50
    with pytest.raises(ValueError, match="4 training images are too few to look for the 4 nearest"):
        memorisation.check(images_of(source, [0]), dataclasses.replace(source, size=4), 5000)


def test_grey_images():
    source = data.open_source("glyphs:digits:grey", 16, 1, 0)
    found = memorisation.check(images_of(source, range(3)), source, 12, k=2)
    assert found.neighbours.shape == (3, 2, 16, 16, 1) and found.distances[:, 0].max() < 1e-3
