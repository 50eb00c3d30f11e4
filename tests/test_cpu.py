"""The convolution for CPUs and its gradient by the kernel: as XLA's own, for maps that are cut and that are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from ganstyle_jax.nn import cpu


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
    strip=st.integers(1, 200),
)
@settings(max_examples=25, deadline=None)
def test_as_the_plain_convolution(b, h, w, size, channels, padding, stride, strip):
    """In strips of whatever rows: in float64, so that only the order of sums may be seen."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "STRIP", strip * channels[0])
        patch.setattr(cpu, "LEAST", 1)
        x, kernel = drawn(b, h, w, channels[0]), drawn(*size, *channels)
        made, wanted = cpu.convolve(x, kernel, padding, (stride, stride)), plain(x, kernel, padding, stride)
        np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-12)
        y = drawn(*wanted.shape)
        _, pull = jax.vjp(lambda k: plain(x, k, padding, stride), kernel)
        np.testing.assert_allclose(cpu.kernel_gradient(x, y, size, padding, stride), pull(y)[0], rtol=0, atol=1e-11)
