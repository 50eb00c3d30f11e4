"""Networks of PyTorch's example `fast_neural_style`: there and back, and pictures equal to its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.features import torch_files
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn.image_transform import ImageTransform
from ganstyle_jax.style import fast_style, fast_style_files

pytestmark = pytest.mark.usefixtures("quick_compile")
CLIP = fast_style.Config(width=3, blocks=2, output="clip")


def example(torch, width, blocks, track=False):
    """The example's network in its own words and names."""
    nn = torch.nn

    class ConvLayer(nn.Module):
        def __init__(self, before, after, kernel_size, stride, upsample=None):
            super().__init__()
            self.upsample = upsample
            self.reflection_pad = nn.ReflectionPad2d(kernel_size // 2)
            self.conv2d = nn.Conv2d(before, after, kernel_size, stride)

        def forward(self, x):
            if self.upsample:
                x = nn.functional.interpolate(x, mode="nearest", scale_factor=self.upsample)
            return self.conv2d(self.reflection_pad(x))

    def norm(channels):
        return nn.InstanceNorm2d(channels, affine=True, track_running_stats=track)

    class ResidualBlock(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv1, self.in1 = ConvLayer(channels, channels, 3, 1), norm(channels)
            self.conv2, self.in2 = ConvLayer(channels, channels, 3, 1), norm(channels)

        def forward(self, x):
            return self.in2(self.conv2(nn.functional.relu(self.in1(self.conv1(x))))) + x

    class TransformerNet(nn.Module):
        def __init__(self):
            super().__init__()
            w = width
            self.conv1, self.in1 = ConvLayer(3, w, 9, 1), norm(w)
            self.conv2, self.in2 = ConvLayer(w, 2 * w, 3, 2), norm(2 * w)
            self.conv3, self.in3 = ConvLayer(2 * w, 4 * w, 3, 2), norm(4 * w)
            for i in range(1, blocks + 1):
                setattr(self, f"res{i}", ResidualBlock(4 * w))
            self.deconv1, self.in4 = ConvLayer(4 * w, 2 * w, 3, 1, upsample=2), norm(2 * w)
            self.deconv2, self.in5 = ConvLayer(2 * w, w, 3, 1, upsample=2), norm(w)
            self.deconv3 = ConvLayer(w, 3, 9, 1)

        def forward(self, x):
            relu = nn.functional.relu
            y = relu(self.in3(self.conv3(relu(self.in2(self.conv2(relu(self.in1(self.conv1(x)))))))))
            for i in range(1, blocks + 1):
                y = getattr(self, f"res{i}")(y)
            return self.deconv3(relu(self.in5(self.deconv2(relu(self.in4(self.deconv1(y)))))))

    torch.manual_seed(0)
    net = TransformerNet()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".conv2d." not in name:  # of normalisations, which begin as 1 and 0
                parameter.add_(0.3 * torch.randn_like(parameter))
        net.deconv3.conv2d.weight.mul_(100)  # pictures in 0..255, and some beyond
        net.deconv3.conv2d.bias.fill_(120)
    return net


@pytest.mark.parametrize("old", [False, True])
def test_pictures_are_those_of_the_example(torch, tmp_path, old):
    """Its file, of today or with running statistics, through `import_files` and a run folder."""
    from ganstyle_jax.loop import runs

    net = example(torch, 4, 2, track=old)
    torch.save(net.state_dict(), tmp_path / "candy.pth", _use_new_zipfile_serialization=not old)
    assert old == ("in1.running_mean" in torch.load(tmp_path / "candy.pth", weights_only=True))
    assert fast_style_files.recognises([tmp_path / "candy.pth"])
    said = fast_style_files.import_files([tmp_path / "candy.pth"], tmp_path / "run")
    assert said.startswith("the network of candy.pth, width 4, is in the run folder")
    run = runs.load(tmp_path / "run")
    assert (run.cfg.width, run.cfg.blocks, run.cfg.output, run.cfg.style) == (4, 2, "clip", ())
    colours = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3)).astype(np.float32)
    found = run.draw(run.method.requests_of(colours / 127.5 - 1, run.cfg))["result"]
    with torch.no_grad():
        expected = net.train(old)(torch.tensor(colours).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    inside = np.mean((expected > 0) & (expected < 255))
    assert 0.5 < inside < 1
    np.testing.assert_allclose(127.5 * (found + 1), np.clip(expected, 0, 255), rtol=0, atol=5e-3)  # of 255


def test_in_float64_to_rounding(torch, x64):
    net = example(torch, 3, 1).double()
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    cfg, params = fast_style_files.from_torch(state)
    colours = np.random.default_rng(0).uniform(0, 255, (1, 16, 20, 3))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    found = jax.jit(lambda p, x: fast_style.network(cfg).apply(p, x, clip=False))(params, colours / 127.5 - 1)
    with torch.no_grad():
        expected = net(torch.tensor(colours).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    # The weights are rounded to float32.
    np.testing.assert_allclose(127.5 * (found + 1), expected, rtol=0, atol=1e-3)


def test_there_and_back(torch):
    """State dict to tree to state dict: as it was, but for the last bit and biases without effect."""
    state = {name: value.numpy() for name, value in example(torch, 3, 2).state_dict().items()}
    cfg, params = fast_style_files.from_torch(state)
    transform = fast_style.network(cfg)
    assert transform == ImageTransform(3, 2, output="clip")
    again = fast_style_files.to_torch(params, transform, np.ones(1))
    assert set(again) == set(state)
    for name, value in state.items():
        assert again[name].dtype == np.float32
        np.testing.assert_allclose(again[name], value, rtol=1e-6, atol=1e-4 if name == "conv1.conv2d.bias" else 1e-6)


def test_a_run_becomes_a_file_of_each_style(torch, tmp_path):
    """Into the example's own network, which loads it strictly; a blend is that of scales and shifts."""
    cfg = dataclasses.replace(CLIP, style=(tmp_path / "a.jpg", tmp_path / "b.jpg"))
    transform = fast_style.network(cfg)
    leaves, tree = jax.tree.flatten(transform.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])
    blend = np.array([0.25, 0.75])
    torch_files.write_state_dict(tmp_path / "a.pth", fast_style_files.to_torch(params, transform, blend))
    net = example(torch, 3, 2)
    net.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    pictures = np.tanh(rng.normal(size=(1, 16, 20, 3))).astype(np.float32)
    with torch.no_grad():
        found = net(torch.tensor(127.5 * (pictures + 1)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    expected = jax.jit(transform.apply)(params, pictures, jnp.asarray(blend[None], jnp.float32))
    np.testing.assert_allclose(np.clip(found / 127.5 - 1, -1, 1), expected, rtol=0, atol=5e-5)


@pytest.mark.slow
def test_the_command_converts_both_ways(torch, home, tmp_path, capsys):
    from ganstyle_jax import cli

    net = example(torch, 3, 1)
    torch.save(net.state_dict(), tmp_path / "candy.pth")
    cli.main(["convert", str(tmp_path / "candy.pth"), "--out", str(tmp_path / "run")])
    assert "the network of candy.pth" in capsys.readouterr().out
    for file_format in ("pth", "safetensors"):
        cli.main(["convert", str(tmp_path / "run"), "--out", str(tmp_path / "back"), "--format", file_format])
    again = torch_files.read_state_dict(tmp_path / "back/style.pth")
    for name, value in net.state_dict().items():
        silent = (name.endswith("conv2d.bias") and not name.startswith("deconv3")) or name == "res1.in2.bias"
        if not silent:  # what is without effect is not kept
            np.testing.assert_allclose(again[name], value.numpy(), rtol=1e-6, atol=1e-5)
    assert (tmp_path / "back/style.safetensors").is_file()


def test_refusals(torch, tmp_path):
    state = {name: value.numpy() for name, value in example(torch, 3, 1).state_dict().items()}
    read = fast_style_files.from_torch
    with pytest.raises(UserError, match=r"no network of the example fast_neural_style: it holds main\.0\.weight"):
        read({"main.0.weight": np.zeros((2, 3, 4, 4), np.float32)})
    with pytest.raises(UserError, match=r"the file has no res1\.in2\.weight, which a network of width 3 with 1 blocks"):
        read({name: value for name, value in state.items() if name != "res1.in2.weight"})
    with pytest.raises(UserError, match=r"in1\.weight has the shape \(5,\), and a network of width 3 needs \(3,\)"):
        read(state | {"in1.weight": np.ones(5, np.float32)})
    with pytest.raises(UserError, match=r"in1\.weight holds 3 NaN, so the training"):
        read(state | {"in1.weight": np.full(3, np.nan, np.float32)})
    with pytest.raises(UserError, match=r"also holds fc\.weight, for which there is no place"):
        read(state | {"fc.weight": np.ones(5, np.float32)})
    for changes in (dict(output="tanh"), dict(upsampling="transposed")):
        transform = fast_style.network(dataclasses.replace(CLIP, **changes))
        with pytest.raises(UserError, match=r"the PyTorch example has no network with t.*train with --output clip"):
            fast_style_files.to_torch({}, transform, np.ones(1))
    assert not fast_style_files.recognises([tmp_path / "nothing.pth"])
