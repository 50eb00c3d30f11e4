"""StyleGAN2 networks out of the authors' pickles and back, made here in their layout."""

import dataclasses

import jax
import numpy as np
import persistent
import pytest
from flax.traverse_util import flatten_dict

from ganstyle_jax.commands import convert
from ganstyle_jax.features import persistent_pickle
from ganstyle_jax.features.torch_files import read_state_dict
from ganstyle_jax.gan import stylegan2, stylegan2_files
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import runs

# 16 pixels: levels of 4 and 8 have 8 channels, that of 16 has 4.
SIZES = dict(z_dim=6, w_dim=6, c_dim=0, img_resolution=16, img_channels=3)
SYNTHESIS = dict(channel_base=64, channel_max=8, num_fp16_res=2, conv_clamp=256)
WIDTHS = {4: 8, 8: 8, 16: 4}


def generator_shapes(classes=0):
    """Names and shapes of the authors' generator, by hand."""
    found = {"mapping.w_avg": (6,)}
    if classes:
        found |= {"mapping.embed.weight": (6, classes), "mapping.embed.bias": (6,)}
    for i in range(2):
        found |= {f"mapping.fc{i}.weight": (6, 12 if classes and i == 0 else 6), f"mapping.fc{i}.bias": (6,)}
    before = None
    for size, width in WIDTHS.items():
        at = f"synthesis.b{size}"
        found[f"{at}.resample_filter"] = (4, 4)
        if before is None:
            found[f"{at}.const"] = (width, 4, 4)
        for name, channels in (("conv0", before), ("conv1", width)):
            if channels is None:
                continue
            found |= {f"{at}.{name}.weight": (width, channels, 3, 3), f"{at}.{name}.bias": (width,)}
            found |= {f"{at}.{name}.affine.weight": (channels, 6), f"{at}.{name}.affine.bias": (channels,)}
            found |= {f"{at}.{name}.noise_strength": (), f"{at}.{name}.noise_const": (size, size)}
            found[f"{at}.{name}.resample_filter"] = (4, 4)
        found |= {f"{at}.torgb.weight": (3, width, 1, 1), f"{at}.torgb.bias": (3,)}
        found |= {f"{at}.torgb.affine.weight": (width, 6), f"{at}.torgb.affine.bias": (width,)}
        before = width
    return found


def discriminator_shapes(classes=0):
    found = {"b16.fromrgb.weight": (4, 3, 1, 1), "b16.fromrgb.bias": (4,)}
    for size, wide, after in ((16, 4, 8), (8, 8, 8)):
        at = f"b{size}"
        found |= {f"{at}.conv0.weight": (wide, wide, 3, 3), f"{at}.conv0.bias": (wide,)}
        found |= {f"{at}.conv1.weight": (after, wide, 3, 3), f"{at}.conv1.bias": (after,)}
        found |= {f"{at}.skip.weight": (after, wide, 1, 1), f"{at}.skip.resample_filter": (4, 4)}
    found |= {"b4.conv.weight": (8, 9, 3, 3), "b4.conv.bias": (8,), "b4.fc.weight": (8, 128), "b4.fc.bias": (8,)}
    out = 8 if classes else 1
    found |= {"b4.out.weight": (out, 8), "b4.out.bias": (out,)}
    if classes:
        found |= {"mapping.embed.weight": (8, classes), "mapping.embed.bias": (8,)}
        for i in range(8):
            found |= {f"mapping.fc{i}.weight": (8, 8), f"mapping.fc{i}.bias": (8,)}
    return found


def drawn(shapes, seed):
    rng = np.random.default_rng(seed)
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    return {
        name: (taps if name.endswith("filter") else rng.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def pickled(torch, arrays, kind, **arguments):
    """A module of the class `kind` with these arrays in it, whose modules are pickled as the authors' are."""
    buffers = ("resample_filter", "noise_const", "w_avg")

    class Part(torch.nn.Module):
        def __init__(self, **_):
            super().__init__()

    Part.__name__ = kind
    made = persistent.persistent(Part)
    root = made(**arguments)
    for name, array in arrays.items():
        *way, last = name.split(".")
        place = root
        for step in way:
            if step not in place._modules:
                place.add_module(step, persistent.persistent(Part)())
            place = place._modules[step]
        tensor = torch.tensor(array)
        if last in buffers:
            place.register_buffer(last, tensor)
        else:
            place.register_parameter(last, torch.nn.Parameter(tensor))
    return root


def snapshot(torch, path, classes=0, generator=None, discriminator=None, gen_said=(), disc_said=()):
    gen = drawn(generator_shapes(classes), 0) if generator is None else generator
    disc = drawn(discriminator_shapes(classes), 1) if discriminator is None else discriminator
    said = SIZES | {"c_dim": classes} | {"mapping_kwargs": persistent.EasyDict(num_layers=2)}
    said |= {"synthesis_kwargs": persistent.EasyDict(SYNTHESIS)} | dict(gen_said)
    told = dict(c_dim=classes, img_resolution=16, epilogue_kwargs=persistent.EasyDict(mbstd_group_size=2))
    tree = {
        "G": None,
        "D": pickled(torch, disc, "Discriminator", **told | dict(disc_said)),
        "G_ema": pickled(torch, gen, "Generator", **said),
        "augment_pipe": None,
    }
    return persistent.dump(tree, path), gen, disc


@pytest.mark.parametrize("classes", [0, 3])
def test_a_snapshot_becomes_a_run_and_its_weights_come_back(torch, tmp_path, capsys, classes):
    path, gen, disc = snapshot(torch, tmp_path / "network-snapshot-000000.pkl", classes)
    convert.run(convert.Convert((path,), tmp_path / "run"))
    assert "G_ema and D of 16 pixels" in capsys.readouterr().out
    run = runs.load(tmp_path / "run")
    assert run.cfg == dataclasses.replace(
        stylegan2.complete(stylegan2.Config(image_size=16, channels=3, latent_dim=6, mapping_layers=2, capacity=64)),
        max_channels=8, group=2, conditional=classes > 0, classes=classes or None,
    )  # fmt: skip
    params = flatten_dict(run.state.ema, sep="/")
    same = np.testing.assert_array_equal
    same(params["synthesis/b8/conv0/kernel"][2, 1, 5, 7], gen["synthesis.b8.conv0.weight"][7, 5, 2, 1])
    same(params["synthesis/b4/const"][1, 2, 3], gen["synthesis.b4.const"][3, 1, 2])
    same(params["mapping/fc0/kernel"][4, 5], gen["mapping.fc0.weight"][5, 4])
    same(run.state.w_avg, gen["mapping.w_avg"])
    same(run.state.noise["b16"]["conv0"], gen["synthesis.b16.conv0.noise_const"])
    # The last pixels lie flat with channels first there, as PyTorch flattens them.
    x = np.random.default_rng(2).normal(size=(2, 4, 4, 8)).astype(np.float32)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2).copy()).flatten(1) @ torch.tensor(disc["b4.fc.weight"]).t()
    ours = x.reshape(2, -1) @ np.asarray(run.state.disc.params["fc"]["kernel"])
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)
    pictures = run.sample(jax.random.key(0), 3)
    assert pictures.shape == (3, 16, 16, 3) and np.isfinite(pictures).all() and pictures.std() > 0.01

    convert.run(convert.Convert((tmp_path / "run",), tmp_path / "back"))
    for name, arrays in (("G_ema", gen), ("D", disc)):
        back = read_state_dict(tmp_path / "back" / f"{name}.pth")
        assert set(back) == {name for name in arrays if not name.endswith("resample_filter")}
        for key, array in back.items():
            same(array, arrays[key])


def test_it_samples_as_pytorch_does_with_the_same_weights(torch, tmp_path):
    """By the network of tests/torch_stylegan2.py, which test_stylegan2.py compares with the method."""
    import torch_stylegan2 as reference

    path, gen, disc = snapshot(torch, tmp_path / "a.pkl")
    cfg, state = stylegan2_files.state_of(persistent_pickle.read_networks(path))

    def kernels(arrays):
        tree = {}
        for name, array in arrays.items():
            *way, last = name.split(".")
            place = tree
            for step in way:
                place = place.setdefault({"torgb": "to_picture"}.get(step, step), {})
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
            array = array.T if last == "weight" and array.ndim == 2 else array
            place["kernel" if last == "weight" else last] = array.transpose(1, 2, 0) if last == "const" else array
        return reference.tensors(tree, grad=False)

    theirs = kernels(gen)
    z = np.random.default_rng(0).normal(size=(2, 6))
    ws = reference.mapping(theirs["mapping"], torch.tensor(z), None, None, 2)[:, None].expand(-1, 6, -1)
    noise = {
        f"b{s}": {c: theirs["synthesis"][f"b{s}"][c]["noise_const"][None] for c in ("conv0", "conv1")} for s in (8, 16)
    }
    noise["b4"] = {"conv1": theirs["synthesis"]["b4"]["conv1"]["noise_const"][None]}
    expected = reference.synthesis(theirs["synthesis"], ws, noise).numpy().transpose(0, 2, 3, 1)
    variables = stylegan2.generator(state, cfg)
    w = stylegan2.to_w(variables, z.astype(np.float32), cfg)
    ours = stylegan2.paint(variables["params"], w, stylegan2.sample_noise(variables, 2, cfg), cfg)
    assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)
    assert disc is not None


def test_a_generator_alone_gets_a_new_discriminator(torch, tmp_path, quick_compile):
    tree = {"G_ema": pickled(torch, drawn(generator_shapes(), 0), "Generator", **SIZES)}
    said = {"mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": SYNTHESIS}
    tree["G_ema"]._init_kwargs |= said
    path = persistent.dump(tree, tmp_path / "g.pkl")
    assert "G_ema of 16 pixels are" in stylegan2_files.import_files([path], tmp_path / "run")
    state = runs.load(tmp_path / "run").state
    assert np.std(state.disc.params["b8"]["conv0"]["kernel"]) > 0.9  # N(0, 1)


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        stylegan2_files.import_files([path], path.with_suffix(".run"))
    assert "\n" not in str(error.value)
    assert not path.with_suffix(".run").exists()


def test_other_networks_are_refused_by_name(torch, tmp_path):
    gen, disc = drawn(generator_shapes(), 0), drawn(discriminator_shapes(), 1)
    path = tmp_path / "a.pkl"

    def of(generator=None, discriminator=None, **more):
        return snapshot(torch, path, 0, generator, discriminator, **more)[0]

    refused(of({name: x for name, x in gen.items() if "b4.const" not in name}), "without the constant.*StyleGAN3")
    refused(
        of({name: x for name, x in gen.items() if name != "synthesis.b8.torgb.bias"}), r"no synthesis\.b8\.torgb\.bias"
    )
    refused(of(gen | {"synthesis.b8.more": gen["mapping.w_avg"]}), r"holds synthesis\.b8\.more")
    refused(of(gen | {"mapping.fc0.weight": np.zeros((6, 7), np.float32)}), r"shape \(6, 7\), where \(6, 6\)")
    refused(of(gen | {"mapping.fc0.bias": np.full(6, np.nan, np.float32)}), "NaN|not finite|training.*failed")
    refused(
        of(gen | {"synthesis.b8.resample_filter": np.eye(4, dtype=np.float32)}), r"another filter than \[1, 3, 3, 1\]"
    )
    refused(of(gen | {"mapping.w_avg": np.zeros(5, np.float32)}), r"no sound mapping\.w_avg")
    refused(of(gen_said={"w_dim": 7}), "latents of 6 and styles of 7 numbers")
    refused(of(gen_said={"img_resolution": None}), "does not say its img_resolution")
    refused(of(gen_said={"img_resolution": 12}), "not accepted: image_size")
    refused(of(gen_said={"synthesis_kwargs": persistent.EasyDict(SYNTHESIS | {"architecture": "resnet"})}), "'resnet'")
    refused(of(disc_said={"architecture": "skip"}), "D has the architecture 'skip'")
    refused(
        persistent.dump({"G": pickled(torch, gen, "Generator")}, tmp_path / "b.pkl"), "no averaged generator, G_ema"
    )
    with pytest.raises(UserError, match="give one file, got 2"):
        stylegan2_files.import_files([path, path], tmp_path / "run")
    assert disc
