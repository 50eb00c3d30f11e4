"""Closed forms and properties of walks through latent space."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ganstyle_jax.look import walks

vectors = hnp.arrays(np.float64, (4,), elements=st.floats(-10, 10)).filter(lambda x: np.linalg.norm(x) > 1e-3)


def test_slerp_of_orthogonal_vectors_is_a_quarter_circle():
    a, b = np.array([1.0, 0, 0]), np.array([0.0, 1, 0])
    t = np.linspace(0, 1, 7)
    expected = np.stack([np.cos(t * np.pi / 2), np.sin(t * np.pi / 2), 0 * t], axis=-1)
    np.testing.assert_allclose(walks.slerp(a, b, t), expected, atol=1e-15)
    np.testing.assert_allclose(walks.slerp(2 * a, 4 * b, 0.5), 3 * np.sqrt([0.5, 0.5, 0]), atol=1e-15)


@given(vectors, vectors, st.floats(0, 1))
def test_slerp_equals_the_formula_of_the_paper(a, b, t):
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    omega = np.arccos(np.clip(a @ b, -1, 1))
    if not 0.01 < omega < 3.13:  # where the formula itself is accurate
        return
    expected = np.sin((1 - t) * omega) / np.sin(omega) * a + np.sin(t * omega) / np.sin(omega) * b
    np.testing.assert_allclose(walks.slerp(a, b, t), expected, atol=1e-9)


@settings(max_examples=200)
@given(
    vectors, vectors, st.sampled_from([0.0, 1e-300, 1e-16, 1e-9, 1e-3, 1.0]), st.sampled_from([-1, 1]), st.floats(0, 1)
)
def test_slerp_is_on_the_sphere_and_turns_evenly(a, noise, scale, sign, t):
    """Also for parallel and opposite vectors, and those a rounding error away from it."""
    b = sign * a + scale * noise
    if np.linalg.norm(b) < 1e-6:
        return
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    z = walks.slerp(a, b, t)
    np.testing.assert_allclose(np.linalg.norm(z), (1 - t) * length_a + t * length_b, rtol=1e-12)

    def angle(x, y):
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        return 2 * np.arctan2(np.linalg.norm(x - y), np.linalg.norm(x + y))

    np.testing.assert_allclose(angle(a, z), t * angle(a, b), atol=1e-7)
    np.testing.assert_allclose(angle(z, b), (1 - t) * angle(a, b), atol=1e-7)


@given(vectors, vectors)
def test_slerp_has_exact_end_points_and_keeps_the_dtype(a, b):
    for dtype in (np.float16, np.float32, np.float64):
        x, y = a.astype(dtype), b.astype(dtype)
        ends = walks.slerp(x, y, np.array([0.0, 1.0]))
        assert ends.dtype == dtype
        np.testing.assert_array_equal(ends, [x, y])


def test_slerp_of_special_vectors():
    a = np.array([3.0, 4.0])
    np.testing.assert_array_equal(walks.slerp(a, a, 0.3), a)
    np.testing.assert_allclose(walks.slerp(a, 2 * a, 0.25), 1.25 * a, rtol=1e-15)
    halfway = walks.slerp(a, -a, 0.5)
    np.testing.assert_allclose([halfway @ a, np.linalg.norm(halfway)], [0, 5], atol=1e-12)
    np.testing.assert_array_equal(walks.slerp(a, -a, 0.5), halfway)
    np.testing.assert_allclose(walks.slerp(a, 0 * a, 0.25), 0.75 * a)  # a zero vector has no direction
    np.testing.assert_allclose(walks.slerp(np.array([2.0]), np.array([-2.0]), 0.5), [0.0])
    np.testing.assert_allclose(walks.slerp(np.array([1, 0]), np.array([0, 1]), 0.5), np.sqrt([0.5, 0.5]))


def test_slerp_broadcasts():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 1, 8)), rng.normal(size=(3, 8))
    t = rng.uniform(size=(5, 3))
    got = walks.slerp(a, b, t)
    assert got.shape == (5, 3, 8)
    np.testing.assert_array_equal(got[4, 2], walks.slerp(a[4, 0], b[2], t[4, 2]))


def test_slerp_errors():
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\)"):
        walks.slerp(np.ones(3), np.ones(4), 0.5)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got values from -0.5 to 2.0"):
        walks.slerp(np.ones(3), np.ones(3), np.array([-0.5, 2]))
    with pytest.raises(ValueError, match="t must lie"):
        walks.slerp(np.ones(3), np.ones(3), np.nan)


@pytest.mark.parametrize("shape", [(2, 8), (5, 8), (3, 2, 8)])
def test_walk_is_closed_and_passes_through_every_latent(shape):
    import jax

    latents = jax.random.normal(jax.random.key(0), shape)
    path = walks.walk(latents, frames_between=3)
    assert path.shape == (4 * shape[0], *shape[1:]) and path.dtype == np.float32
    np.testing.assert_array_equal(path[::4], latents)
    np.testing.assert_array_equal(walks.walk(latents, 0), latents)
    np.testing.assert_array_equal(path[-2], walks.slerp(latents[-1], latents[0], 0.5))
    steps = np.linalg.norm(np.roll(path, -1, axis=0) - path, axis=-1)
    assert (
        steps.max() < np.linalg.norm(np.roll(latents, -1, axis=0) - latents, axis=-1).max() / 2
    )  # no jump, at the seam either


def test_walk_errors():
    with pytest.raises(ValueError, match=r"got shape \(1, 8\) and frames_between=3"):
        walks.walk(np.ones((1, 8)), 3)
    with pytest.raises(ValueError, match=r"frames_between=-1"):
        walks.walk(np.ones((2, 8)), -1)
