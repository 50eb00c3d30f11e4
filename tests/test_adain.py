"""AdaIN: statistics in closed form, a training step as PyTorch takes it, styles mixed and placed, files for PyTorch."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_encoder

from ganstyle_jax.features import array_files, network_files, torch_files, vgg, weights
from ganstyle_jax.io import images as pixels
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.pictures import read_picture
from ganstyle_jax.style import adain, adain_files

pytestmark = pytest.mark.usefixtures("quick_compile")
CFG = adain.Config(32, 32, small_encoder.path())


def noise(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def variables_of(cfg, seed=0):
    """A decoder with biases and a full last layer, so that its pictures are not grey."""
    constants = adain.constants(cfg)
    params = adain.init(jax.random.key(seed), cfg, constants).params
    last = list(params)[-1]
    params[last] = {name: 10 * x for name, x in params[last].items()}
    for i, layer in enumerate(params.values()):
        layer["bias"] = 0.1 * jax.random.normal(jax.random.key(i), layer["bias"].shape, cfg.dtype)
    return {"params": params, **constants}


@pytest.fixture(scope="module")
def variables():
    return variables_of(CFG)


encode = jax.jit(adain.encode, static_argnums=(2, 3))
decode = jax.jit(adain.decode, static_argnums=2)
exchange = jax.jit(adain.adain)
moments = jax.jit(adain.moments)
stylise = jax.jit(adain.stylise, static_argnums=1)
sample = jax.jit(adain.sample, static_argnums=2)


def paint(variables, content, styles, shares=None, alpha=1.0, masks=None):
    return np.asarray(stylise(variables, CFG, content, styles, shares, alpha, masks))


def picture(seed, *shape):
    """Pictures of different contrasts, so that their styles differ."""
    return noise(seed, *shape, 3) * (1 + seed) / 4


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def test_adain_in_closed_form(x64):
    """Content 0, 2 (mean 1, deviation 1) takes the mean 10 and deviation 3 of 7, 13; nothing else would give 7, 13."""
    content, style = (jnp.array(x, jnp.float64).reshape(1, 1, 2, 1) for x in ([0.0, 2.0], [7.0, 13.0]))
    np.testing.assert_allclose(exchange(content, style).ravel(), [7, 13], rtol=1e-5)
    np.testing.assert_allclose(exchange(style, content).ravel(), [0, 2], atol=1e-5)
    mean, std = moments(style)
    np.testing.assert_allclose([mean.item(), std.item()], [10, (9 + 1e-5) ** 0.5], rtol=1e-12)


def test_each_channel_of_each_picture_gets_its_own_statistics(x64):
    content, style = (
        jnp.asarray(noise(0, 3, 5, 7, 4, dtype=float)),
        jnp.asarray(3 + 2 * noise(1, 3, 6, 2, 4, dtype=float)),
    )
    found = exchange(content, style)
    np.testing.assert_allclose(found.mean((1, 2)), style.mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std((1, 2)), style.std((1, 2)), rtol=1e-4)  # of eps
    np.testing.assert_allclose(exchange(content, content), content, rtol=1e-12)
    moved = exchange(2 * content + 1, style)  # of the content's own statistics nothing is left
    np.testing.assert_allclose(moved, found, rtol=1e-3, atol=1e-3)


def test_a_constant_channel_takes_the_mean_and_has_a_finite_gradient():
    content, style = jnp.ones((1, 4, 4, 1)), jnp.asarray(noise(0, 1, 4, 4, 1))
    np.testing.assert_allclose(exchange(content, style), jnp.full((1, 4, 4, 1), style.mean()), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: (adain.adain(x, style) ** 2).sum()))(content)
    assert np.isfinite(gradient).all()


def test_statistics_within_a_mask():
    features = jnp.asarray(noise(0, 1, 4, 6, 2))
    mask = jnp.zeros((1, 4, 6, 1)).at[:, :, :2].set(1)
    for found, wanted in zip(moments(features, mask), moments(features[:, :, :2]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for found, wanted in zip(moments(features, mask + 1 - mask), moments(features), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in moments(features, 0 * mask))


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def test_the_decoder_of_vgg19_is_the_papers():
    found = adain.decoder_layers(vgg.VGG19)
    channels = [512, 256, 256, 256, 256, 128, 128, 64, 64, 3]
    assert [(layer.before, layer.after) for layer in found] == list(itertools.pairwise(channels))
    assert adain_files.positions(found) == [1, 5, 8, 11, 14, 18, 21, 25, 28]
    assert [layer.enlarge for layer in found] == [True, *[False] * 3, True, False, True, False, False]


@pytest.mark.parametrize("width, megabytes", [(1, 0.76), (1.5, 1.5), (2, 2.47)])
def test_the_compact_networks_decoder_is_small(width, megabytes):
    cfg = adain.Config(width=width)
    constants = adain.constants(cfg)
    shapes = jax.eval_shape(
        lambda key: adain.generator(adain.init(key, cfg, constants), cfg, constants), jax.random.key(0)
    )
    sizes = {name: sum(2 * x.size for x in jax.tree.leaves(part)) / 1e6 for name, part in shapes.items()}  # in float16
    np.testing.assert_allclose(sizes["params"], megabytes, atol=0.01)
    assert sizes["encoder"] < 0.8  # together below 2 MB at a width of 1
    assert shapes["params"]["conv1"]["kernel"].shape == (3, 3, 192, 80 * width)


def test_the_encoder_is_the_relu_and_losses_see_the_head():
    params = adain.constants(CFG)["encoder"]
    assert set(params) == {"input", "conv1_1", "conv1_2", "conv2_1", "conv3_1", "conv3_2", "conv4_1"}
    images = jnp.asarray(noise(0, 2, 32, 32, 3))
    found = encode(params, images, CFG, adain.STYLE_TAPS)
    network, whole = weights.load(CFG.encoder)
    tapped = jax.jit(lambda params: network.apply(params, images, adain.STYLE_TAPS))(whole)
    for tap in adain.STYLE_TAPS:
        assert found[tap].min() >= 0
        np.testing.assert_allclose(adain.behind_head(params, found[tap], tap), tapped[tap], atol=1e-5)
    assert tapped["relu4_1"].min() < 0  # a head's, which the ReLU's are not


def test_an_encoder_without_the_layer_is_refused(tmp_path):
    short = vgg.VGG(((4,), (4,)))
    network_files.write(tmp_path / "short.safetensors", short, short.init(jax.random.key(0)))
    with pytest.raises(UserError, match=r"short.safetensors has no relu4_1, on which AdaIN works: take a VGG of four"):
        adain.constants(adain.Config(encoder=str(tmp_path / "short.safetensors")))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"crop": 100}, "crop must be a multiple of 8 from 16 pixels up, got 100: take 96"),
        ({"crop": 8}, "got 8: take 16"),
        ({"image_size": 128}, "image_size must be at least the crop's 256, got 128"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"style_weight": -1.0}, "style_weight must not be negative, got -1.0"),
        ({"dtype": "float16"}, "dtype must be float32 or float64, got 'float16'"),
    ],
)
def test_settings_that_do_not_fit(values, message):
    with pytest.raises(ValueError, match=message):
        adain.Config(**values)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_two_training_steps_are_pytorchs(x64, torch):
    import torch_adain

    cfg = dataclasses.replace(CFG, dtype="float64", decay=0.5, learning_rate=1e-3, content_weight=0.7)
    constants = adain.constants(cfg)
    state = adain.init(jax.random.key(1), cfg, constants)
    batches = [{name: noise(2 * i + j, 3, 32, 32, 3) for j, name in enumerate(("content", "style"))} for i in (0, 1)]

    found = adain.decoder_layers(small_encoder.NETWORK)
    reference = torch_adain.decoder(
        [(layer.before, layer.after) for layer in found], {i for i, x in enumerate(found) if x.enlarge}, torch.float64
    )
    convolutions = [layer for layer in reference if isinstance(layer, torch.nn.Conv2d)]

    def copied():
        return {
            layer.name: {
                "kernel": conv.weight.detach().numpy().transpose(2, 3, 1, 0),
                "bias": conv.bias.detach().numpy(),
            }
            for layer, conv in zip(found, convolutions, strict=True)
        }

    params = jax.tree.map(jnp.array, copied())
    state = state.replace(params=params, ema=jax.tree.map(jnp.copy, params))
    encoder = torch_adain.Encoder(
        jax.tree.map(np.array, constants["encoder"]), small_encoder.NETWORK.channels, "reflect"
    )
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3)
    step = jax.jit(partial(adain.train_step, cfg=cfg))
    for i, batch in enumerate(batches):
        state, metrics = step(
            state, {k: {"image": x} for k, x in batch.items()}, jax.random.key(2), constants=constants
        )
        content, style = (torch.tensor(batch[k].astype(float)).permute(0, 3, 1, 2) for k in ("content", "style"))
        of_content, of_style = torch_adain.losses(encoder, reference, content, style)
        optimizer.param_groups[0]["lr"] = 1e-3 / (1 + 0.5 * i)
        optimizer.zero_grad()
        (0.7 * of_content + 10 * of_style).backward()
        optimizer.step()
        np.testing.assert_allclose(metrics["loss/content"], of_content.item(), rtol=1e-10)
        np.testing.assert_allclose(metrics["loss/style"], of_style.item(), rtol=1e-10)
    for (path, value), wanted in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(copied()), strict=True
    ):
        np.testing.assert_allclose(value, wanted, atol=1e-10, err_msg=jax.tree_util.keystr(path))
    assert int(state.step) == 2


def test_losses_are_0_at_the_goal_and_1_without_features():
    params = adain.constants(CFG)["encoder"]
    style = encode(params, jnp.asarray(noise(0, 2, 32, 32, 3)), CFG, adain.STYLE_TAPS)
    target = style[adain.TAP]
    losses_of = jax.jit(adain.losses_of)
    for loss in losses_of(params, style, target, style):
        np.testing.assert_allclose(loss, 0, atol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, style)
    of_content, of_style = losses_of(params, nothing, target, style)
    np.testing.assert_allclose(of_content, 1, rtol=1e-5)
    np.testing.assert_allclose(of_style, 4, rtol=0.05)  # of four layers; eps is in both deviations


def test_crops_are_parts_of_their_pictures():
    places = jnp.arange(20 * 30, dtype=jnp.float32).reshape(1, 20, 30, 1) + 1000 * jnp.arange(64.0)[:, None, None, None]
    found = np.asarray(jax.jit(adain.crop, static_argnums=2)(jax.random.key(0), places, 16))
    corners = set()
    for i, part in enumerate(found):
        top, left = divmod(int(part[0, 0, 0]) - 1000 * i, 30)
        np.testing.assert_array_equal(part, places[i, top : top + 16, left : left + 16])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(5)) and max(left for _, left in corners) >= 12
    np.testing.assert_array_equal(adain.crop(jax.random.key(0), places[:, :16, :16], 16), places[:, :16, :16])


# ---------------------------------------------------------------------------------------------------------------------
# Any pictures, several styles


def test_alpha_0_decodes_the_content(variables):
    content, style = picture(0, 2, 32, 32), picture(1, 2, 24, 32)
    features = encode(variables["encoder"], content, CFG)[adain.TAP]
    wanted = np.clip(decode(variables["params"], features, CFG), -1, 1)
    none, some, each = (paint(variables, content, [style], None, np.float32(x)) for x in ([0, 0], [1, 1], [0, 1]))
    np.testing.assert_allclose(none, wanted, atol=1e-5)
    np.testing.assert_allclose(each[0], wanted[0], atol=1e-5)
    np.testing.assert_allclose(each[1], some[1], atol=1e-5)
    assert np.abs(some - wanted).max() > 1e-2


def test_weights_that_choose_one_style_give_that_style(variables):
    content, styles = picture(0, 1, 32, 32), [picture(i, 1, 24, 32) for i in (1, 2, 3)]
    single = [paint(variables, content, [style]) for style in styles]
    for i, shares in enumerate(np.eye(3)):
        np.testing.assert_allclose(paint(variables, content, styles, 5 * shares), single[i], atol=1e-5)
    assert min(np.abs(single[i] - single[i - 1]).max() for i in range(3)) > 1e-2
    mixed = paint(variables, content, styles, np.array([1.0, 1.0, 0.0]))
    encoded = [encode(variables["encoder"], x, CFG)[adain.TAP] for x in (content, *styles[:2])]
    target = (exchange(encoded[0], encoded[1]) + exchange(encoded[0], encoded[2])) / 2
    np.testing.assert_allclose(mixed, np.clip(decode(variables["params"], target, CFG), -1, 1), atol=1e-5)
    two = np.concatenate([content, content])  # and weights that differ from picture to picture
    found = paint(variables, two, styles, np.eye(3)[[2, 0]])
    np.testing.assert_allclose(found, np.concatenate([single[2], single[0]]), atol=1e-5)


def test_masks_place_styles(variables):
    content = picture(0, 1, 16, 128)
    a, b, c = (picture(i, 1, 24, 32) for i in (1, 2, 3))
    left = (np.arange(128) < 64) * np.ones((16, 1))
    masks = np.stack([left, 1 - left])
    found = paint(variables, content, [a, b], None, 1.0, masks)
    other = paint(variables, content, [a, c], None, 1.0, masks)
    # The decoder reaches one of its coarsest values beyond, of 8 pixels, two of 4, one of 2 and two of 1.
    np.testing.assert_allclose(found[:, :, :44], other[:, :, :44], atol=1e-6)
    assert np.abs(found[:, :, 64:] - other[:, :, 64:]).max() > 1e-2
    everywhere = paint(variables, content, [a, b], None, 1.0, np.stack([0 * left + 1, 0 * left]))
    np.testing.assert_allclose(everywhere, paint(variables, content, [a]), atol=1e-5)
    nowhere = paint(variables, content, [a, b], None, 1.0, 0 * masks)
    np.testing.assert_allclose(nowhere, paint(variables, content, [a], None, 0.0), atol=1e-5)


@pytest.mark.parametrize("h, w", [(17, 31), (23, 16)])
def test_any_size(variables, h, w):
    found = paint(variables, picture(0, 1, h, w), [picture(1, 1, 19, 33)])
    assert found.shape == (1, h, w, 3) and found.dtype == np.float32 and np.abs(found).max() <= 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A content of 24 x 40 pixels, two styles and masks for its halves."""
    folder = tmp_path_factory.mktemp("adain")
    for i, (name, size) in enumerate({"content": (24, 40), "a": (20, 30), "b": (48, 32)}.items()):
        pixels.save_png(folder / f"{name}.png", pixels.to_uint8(noise(i, *size, 3) * 0.3 * (1 + i)))
    left = (np.arange(40) < 20) * np.ones((24, 1))
    for name, mask in (("left", left), ("right", 1 - left)):
        pixels.save_png(folder / f"{name}.png", np.uint8(255 * mask[..., None].repeat(3, -1)))
    return folder


def applied(variables, content, **settings):
    """What `ganstyle apply` makes of a picture (h, w, 3)."""
    requests = adain.requests_of(content[None], CFG, adain.ApplySettings(**settings))
    assert {len(x) for x in jax.tree.leaves(requests)} == {1}
    return np.asarray(sample(variables, requests, CFG)["result"][0])


def test_files_are_applied(variables, files):
    content, b = (read_picture(files / f"{name}.png") for name in ("content", "b"))
    both, masks = (files / "a.png", files / "b.png"), (files / "left.png", files / "right.png")
    alone = applied(variables, content, style=both[1:], style_size=32, alpha=0.5)
    np.testing.assert_allclose(alone, paint(variables, content[None], [b[None]], None, 0.5)[0], atol=1e-5)
    mixed = applied(variables, content, style=both, style_weights=(0, 2), style_size=32, alpha=0.5)
    np.testing.assert_allclose(mixed, alone, atol=1e-5)
    placed = applied(variables, content, style=both, masks=masks, style_size=32, alpha=0.5)
    assert placed.shape == content.shape and np.abs(placed - alone).max() > 1e-3


def test_colours_that_are_kept(variables, files):
    content = read_picture(files / "content.png")
    plain, luma, coral = (
        applied(variables, content, style=(files / "b.png",), style_size=32, preserve_colors=how)
        for how in ("none", "luma", "coral")
    )
    inside = (np.abs(luma) < 1).all(-1)
    chroma = [(x - (x @ pixels.LUMA)[..., None])[inside] for x in (luma, content)]
    assert inside.sum() > 50
    np.testing.assert_allclose(chroma[0], chroma[1], atol=1e-5)
    assert np.abs(coral - plain).max() > 1e-3


def test_what_cannot_be_applied(files):
    content = np.zeros((1, 16, 16, 3), np.float32)
    with pytest.raises(UserError, match=r"give the picture whose style is to be taken, such as --style painting.jpg"):
        adain.requests_of(content, CFG)
    settings = adain.ApplySettings(style=(files / "a.png",), masks=(files / "left.png",))
    with pytest.raises(UserError, match=r"left.png has 40 x 24 pixels: it must have as many as the content, 16 x 16"):
        adain.requests_of(content, CFG, settings)
    for values, message in [
        ({"style_weights": (1.0,)}, "style_weights must be 0 numbers"),
        ({"style": (files / "a.png",), "style_weights": (0.0,)}, "must be 1 numbers of 0 or more .* not all 0, got 0"),
        ({"masks": (files / "left.png",)}, "masks must be one for each of 0 styles, got 1"),
        ({"alpha": -1.0}, "alpha must not be negative, got -1"),
        ({"style_size": 8}, "style_size must be at least 16, got 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            adain.ApplySettings(**values)


def test_pictures_that_do_not_fit(variables):
    good = jnp.zeros((1, 16, 16, 3))
    for content, styles, more, message in [
        (good[:, :8], [good], {}, r"content pictures must be \(b, h, w, 3\), 16 pixels of a side or more, got .*8, 16"),
        (good, [good[..., :1]], {}, r"style pictures must be .*got shape \(1, 16, 16, 1\)"),
        (good, [], {}, "give one style at least, got none"),
        (good, [good], {"style_weights": [1, 2]}, r"weights must be one for each of 1 styles, got shape \(2,\)"),
        (good, [good], {"masks": np.ones((1, 8, 16))}, r"masks must be one for each of 1 styles, 16 x 16, got"),
    ]:
        with pytest.raises(ValueError, match=message):
            adain.stylise(variables, CFG, content, styles, **more)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's files

BLOCKS = ((4, 4), (5, 6), (7, 6, 5, 8), (9,))  # convolutions as in VGG-19 up to relu4_1, in small


@pytest.fixture(scope="module")
def torch_pair(torch, tmp_path_factory):
    """vgg_normalised.pth and decoder.pth of small networks of the published layout, and PyTorch's own."""
    import torch_adain

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("torch_adain")
    encoder = torch_adain.vgg_normalised(BLOCKS)
    flat = [3, *(c for block in BLOCKS for c in block)]
    pairs = list(zip(flat[:0:-1], flat[-2::-1], strict=True))
    decoder = torch_adain.decoder(pairs, {0, 4, 6})
    torch.save(encoder.state_dict(), folder / "vgg_normalised.pth")
    torch.save(decoder.state_dict(), folder / "decoder.pth")
    return folder, encoder, decoder


def test_pytorch_adains_files_paint_as_they_do_in_pytorch(torch, torch_pair):
    import torch_adain

    folder, encoder, decoder = torch_pair
    assert list(torch_files.read_state_dict(folder / "decoder.pth"))[:3] == ["1.weight", "1.bias", "5.weight"]
    cfg = adain.Config(encoder=str(folder / "vgg_normalised.pth"))
    params = adain_files.read(folder / "decoder.pth", cfg)
    content, style = (noise(i, 1, 32, 48, 3) for i in (0, 1))
    with torch.no_grad():
        f, g = (encoder(torch.tensor((x + 1) / 2).permute(0, 3, 1, 2)) for x in (content, style))
        wanted = decoder(torch_adain.adain(f, g, unbiased=True)).permute(0, 2, 3, 1).numpy() * 2 - 1
    found = stylise({"params": params, **adain.constants(cfg)}, cfg, content, [style])
    assert wanted.std() > 1e-3 and np.abs(wanted).max() < 1
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_decoder_goes_to_pytorch_and_back(torch, variables, tmp_path):
    import torch_adain

    torch_files.write_state_dict(tmp_path / "decoder.pth", adain_files.decoder_to_torch(variables["params"], CFG))
    found = adain.decoder_layers(small_encoder.NETWORK)
    reference = torch_adain.decoder(
        [(layer.before, layer.after) for layer in found], {i for i, x in enumerate(found) if x.enlarge}
    )
    reference.load_state_dict(torch.load(tmp_path / "decoder.pth", weights_only=True))
    features = noise(0, 2, 4, 5, 8)
    with torch.no_grad():
        theirs = reference(torch.tensor(features).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(decode(variables["params"], features, CFG), 2 * theirs - 1, atol=1e-5)
    again = adain_files.read(tmp_path / "decoder.pth", CFG)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), again, variables["params"])


def test_a_decoder_becomes_a_run_and_comes_out_of_it(home, torch_pair, tmp_path, capsys):
    import ganstyle_jax
    from ganstyle_jax.commands import convert

    folder, _, _ = torch_pair
    encoder, out = str(folder / "vgg_normalised.pth"), tmp_path / "run"
    convert.run(convert.Convert((folder / "decoder.pth",), out, encoder=encoder))
    assert f"the decoder of decoder.pth for the encoder {encoder} is in" in capsys.readouterr().out
    assert ganstyle_jax.load(out).cfg.encoder == encoder
    before = torch_files.read_state_dict(folder / "decoder.pth")
    for file_format in ("pth", "safetensors"):
        convert.run(convert.Convert((out,), tmp_path, file_format))
        (after,) = array_files.read(tmp_path / f"decoder.{file_format}").dicts.values()
        assert set(before) == set(after)
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, atol=1e-6, err_msg=name)
    with pytest.raises(UserError, match="already holds a run"):
        convert.run(convert.Convert((folder / "decoder.pth",), out, encoder=encoder))
    with pytest.raises(UserError, match="--encoder belongs to one file, AdaIN's decoder"):
        convert.run(convert.Convert((out,), tmp_path, encoder=encoder))


def test_files_that_are_no_such_decoder(torch_pair, tmp_path):
    folder, _, _ = torch_pair
    cfg = adain.Config(encoder=str(folder / "vgg_normalised.pth"))
    with pytest.raises(UserError, match=r"1.weight has the shape \(8, 9, 3, 3\), but the decoder of compact needs"):
        adain_files.read(folder / "decoder.pth", adain.Config())
    state = torch_files.read_state_dict(folder / "decoder.pth")
    for change, message in [
        ({"1.weight": None}, "needs 1.weight, and the file holds 1.bias, 5.weight"),
        ({"99.weight": np.zeros(1, np.float32)}, "the file also holds 99.weight"),
        ({"5.bias": np.full(5, np.nan, np.float32)}, "5.bias holds|5.bias has the shape"),
    ]:
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        torch_files.write_state_dict(tmp_path / "changed.pth", changed)
        with pytest.raises(UserError, match=message):
            adain_files.read(tmp_path / "changed.pth", cfg)
