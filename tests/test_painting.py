"""The painting of the quick start."""

import numpy as np
import pytest

from ganstyle_jax.style.painting import painting

SIZE = 80


@pytest.fixture(scope="module")
def small():
    return painting(SIZE)


def test_a_painting_is_a_picture(small):
    assert small.shape == (SIZE * 4 // 5, SIZE, 3) and small.dtype == np.float32
    assert -1 <= small.min() < -0.6 and 0.6 < small.max() <= 1


def test_its_sky_is_blue_and_its_field_golden(small):
    sky, field = small[: SIZE // 3].mean((0, 1)), small[-SIZE // 10 :, SIZE // 4 :].mean((0, 1))
    assert sky[2] > sky[0] + 0.3 and field[0] > field[2] + 0.5


def test_the_seed_decides_the_strokes_and_not_the_motif(small):
    np.testing.assert_array_equal(painting(SIZE), small)
    other = painting(SIZE, seed=1)
    assert not np.array_equal(other, small)
    assert np.corrcoef(other.ravel(), small.ravel())[0, 1] > 0.7


def test_a_larger_painting_is_the_same_one_in_strokes_of_several_pixels(small):
    large = painting(2 * SIZE)

    def blocks(picture, side):  # means over squares of a stroke's width, where single bristles do not count
        h, w = picture.shape[:2]
        return picture.reshape(h // side, side, w // side, side, 3).mean((1, 3)).ravel()

    assert np.corrcoef(blocks(small, 4), blocks(large, 8))[0, 1] > 0.99
    # Neighbouring pixels belong to the same stroke: they vary less than far ones do.
    brightness = large.mean(-1)
    near, far = (np.abs(brightness[:, n:] - brightness[:, :-n]).mean() for n in (1, 16))
    assert near < 0.8 * far


def test_too_small_a_painting_is_refused():
    with pytest.raises(ValueError, match="at least 16 pixels, got 8"):
        painting(8)
