"""Convolutions in strips: as XLA's own, for maps that are cut and that are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from ganstyle_jax.nn import strips


def plain(x, kernel, padding=(0, 0), stride=1):
    pads = [(side, side) for side in padding]
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape))


@given(
    b=st.integers(1, 3),
    h=st.integers(7, 23),
    w=st.integers(7, 12),
    size=st.sampled_from([(1, 1), (3, 3), (2, 2), (3, 1), (5, 5), (4, 4)]),
    channels=st.sampled_from([(1, 3), (6, 2), (3, 7), (5, 5)]),
    padding=st.sampled_from([(0, 0), (1, 1), (2, 1)]),
    stride=st.sampled_from([1, 2]),
    many=st.booleans(),
    strip=st.integers(1, 200),
)
@settings(max_examples=25, deadline=None)
def test_strips_give_what_the_whole_gives(b, h, w, size, channels, padding, stride, many, strip):
    """Of whatever rows: in float64, so that only the order of sums may be seen."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "LARGE", 0)
        patch.setattr(strips, "MANY", 0 if many else 10**9)
        patch.setattr(strips, "_rows", lambda across, height, c: min(height, 1 + strip // across))
        x, kernel = drawn(b, h, w, channels[0]), drawn(*size, *channels)
        made, wanted = strips.convolve(x, kernel, padding, stride), plain(x, kernel, padding, stride)
        np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-12)
        y = drawn(*wanted.shape)
        _, pull = jax.vjp(lambda k: plain(x, k, padding, stride), kernel)
        np.testing.assert_allclose(strips.kernel_gradient(x, y, size, padding, stride), pull(y)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 200, 70, 32), (2, 33, 31, 176), (1, 65, 300, 64)])
def test_large_maps_are_cut(shape):
    """Maps that are cut by themselves, the last strip being of fewer rows of its own; in float32."""
    x, kernel = drawn(*shape).astype(jnp.float32), drawn(3, 3, shape[-1], 24).astype(jnp.float32)
    text = jax.jit(strips.convolve).lower(x, kernel).as_text()
    assert "while" in text
    wanted = plain(x.astype(jnp.float32), kernel)
    np.testing.assert_allclose(strips.convolve(x, kernel), wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_small_maps_and_half_precision_are_left_to_xla():
    for x in (drawn(1, 16, 16, 8), drawn(1, 256, 256, 16).astype(jnp.bfloat16)):
        kernel = drawn(3, 3, x.shape[-1], 4).astype(x.dtype)
        assert "while" not in jax.jit(strips.convolve).lower(x, kernel).as_text()
