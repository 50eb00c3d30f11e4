"""ArtFID from its parts, and CFSD against the authors' formula in float64."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import test_vgg

from ganstyle_jax.features import weights
from ganstyle_jax.features.alexnet import AlexNet
from ganstyle_jax.features.vgg import VGG
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import style
from ganstyle_jax.judge.metrics.distances import fid_infinity, frechet_distance, gaussian

pytestmark = pytest.mark.usefixtures("quick_compile")
SMALL = VGG(((8,), (8,), (16,)))


def draw(seed, n, d=6):
    return np.random.default_rng(seed).normal(size=(n, d)) + seed


def test_art_fid_is_the_product_of_its_parts():
    styles, results = gaussian(draw(0, 40)), draw(1, 800)
    lpips = np.linspace(0.2, 0.8, 800)
    found = style.art_fid(lpips, styles, results, [i % 40 for i in range(800)])
    fid = frechet_distance(styles, gaussian(results))
    assert found.art_fid == pytest.approx(1.5 * (1 + fid), rel=1e-12)
    assert (found.lpips, found.fid) == (pytest.approx(0.5), fid)
    assert (found.pairs, found.unique_styles, found.infinity, found.fid_error) == (800, 40, False, None)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["unique_styles"] == 40
    perfect = style.art_fid(np.zeros(40), styles, draw(0, 40), range(40))
    assert perfect.art_fid == pytest.approx(1, abs=1e-6)


def test_art_fid_with_fid_infinity():
    styles, results = gaussian(draw(0, 40)), draw(1, 5_100)
    found = style.art_fid(np.full(5_100, 0.5), styles, results, np.arange(5_100) % 40, infinity=True, seed=2)
    value, error = fid_infinity(styles, results, 2)
    assert found.infinity and (found.fid, found.fid_error) == (value, error)
    assert found.art_fid == pytest.approx(1.5 * (1 + value))


def test_refusals_of_art_fid():
    styles, results = gaussian(draw(0, 40)), draw(1, 800)
    with pytest.raises(UserError, match="subsets of 5,000 images and more, and there are 800"):
        style.art_fid(np.zeros(800), styles, results, range(800), infinity=True)
    with pytest.raises(UserError, match=r"for each result, and got \(799,\), \(800, 6\) and 800"):
        style.art_fid(np.zeros(799), styles, results, range(800))
    for bad in (-1, np.nan):
        with pytest.raises(UserError, match="finite and at least 0"):
            style.art_fid(np.full(800, bad), styles, results, range(800))
    with pytest.raises(UserError, match="real images have 6 features and the generated 5"):
        style.art_fid(np.zeros(800), styles, results[:, 1:], range(800))


# ---------------------------------------------------------------------------------------------------------------------
# CFSD


def cfsd(torch, content, result):
    """As the evaluation of StyleID has it, with a batch of 1; features (n, c), float64."""
    functional = torch.nn.functional
    a, b = (torch.tensor(np.asarray(x, np.float64)) / x.shape[1] for x in (content, result))
    log_result, of_content = functional.log_softmax(b @ b.T, -1), functional.softmax(a @ a.T, -1)
    return float(functional.kl_div(log_result.reshape(1, -1), of_content.reshape(1, -1), reduction="batchmean"))


@pytest.mark.parametrize("height, width", [(16, 16), (65, 44), (96, 90)])
def test_cfsd_equals_the_formula(torch, height, width):
    """With fewer positions than a block of rows has, and with more."""
    params = test_vgg.random_params(SMALL)
    a, b = (test_vgg.picture(height, width, batch=2, seed=i) for i in range(2))
    found = style.cfsd(SMALL, params, a, b)
    of_a, of_b = (np.asarray(SMALL.apply(params, x, ("relu3_1",))["relu3_1"]).reshape(2, -1, 16) for x in (a, b))
    expected = [cfsd(torch, *pair) for pair in zip(of_a, of_b, strict=True)]
    assert min(expected) > 1e-6
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # float32 products, of which small differences are taken
    np.testing.assert_array_equal(style.cfsd(SMALL, params, a, a), 0)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1, 10])
@pytest.mark.parametrize("n", [5, 256, 300, 600])
def test_divergence_of_self_similarities(torch, x64, n, size):
    """From softmaxes that are nearly uniform, where the sum cancels, to ones that are nearly certain."""
    rng = np.random.default_rng(0)
    a = size * rng.normal(size=(n, 4))
    b = a + 0.3 * size * rng.normal(size=(n, 4))
    expected = cfsd(torch, 4 * a, 4 * b)
    if size < 1e-2:  # the reference loses its digits even in float64; to second order KL is half of the variance
        u = b @ b.T - a @ a.T
        expected = (u.var(axis=1) / 2).sum()
    found = style.self_similarity_divergence(jnp.asarray(a), jnp.asarray(b))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_float32_keeps_digits_that_logarithms_lose():
    """Of a nearly uniform softmax; the plain formula in float32 is wrong by tens of per cent."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 0.05, (500, 16))
    b = a + 0.005 * rng.normal(size=a.shape)
    u = b @ b.T - a @ a.T
    expected = (u.var(axis=1) / 2).sum()
    found = float(style.self_similarity_divergence(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)))
    assert found == pytest.approx(expected, rel=2e-3)


def test_refusals_of_cfsd():
    params, a = test_vgg.random_params(SMALL), test_vgg.picture(16, 16)
    with pytest.raises(
        UserError, match=r"one shape \(b, h, w, 3\), and these are \(1, 16, 16, 3\) and \(1, 16, 15, 3\)"
    ):
        style.cfsd(SMALL, params, a, a[:, :, 1:])
    with pytest.raises(UserError, match="CFSD takes VGG-19, and the network has no layer 'relu3_1'"):
        style.cfsd(AlexNet(), params, a, a)
    with pytest.raises(UserError, match="takes pictures of 4 pixels and more"):
        style.cfsd(SMALL, params, a[:, :3], a[:, :3])


def test_cfsd_of_real_features(data_dir):
    """A picture that keeps the content is nearer than another content; with the real VGG-19 up to conv3_4."""
    from ganstyle_jax.io import images, pictures

    network, params = weights.read(data_dir / "weights" / "vgg19_block1_to_block3.npz")
    photo = pictures.read_picture(data_dir / "images" / "inputs" / "tubingen.jpg")
    photo = np.asarray(images.resize(photo, (96, 128)))[None]
    darker, mirrored = 0.8 * photo - 0.1, photo[:, :, ::-1]
    assert 0 < style.cfsd(network, params, photo, darker)[0] < style.cfsd(network, params, photo, mirrored)[0] / 2
