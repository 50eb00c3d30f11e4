"""R3GAN networks out of the authors' pickles and back, made here in their layout."""

import contextlib
import dataclasses
import itertools
import os
import pickle
import sys
import types

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ganstyle_jax.commands import convert
from ganstyle_jax.features import persistent_pickle
from ganstyle_jax.features.torch_files import read_state_dict
from ganstyle_jax.gan import r3gan, r3gan_files
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import runs

# 16 pixels in three stages, of which two are alike; groups of 4 channels.
WIDTHS, BLOCKS, GROUP, LATENT = (6, 6, 4), 2, 4, 5
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def made_of(torch, package="R3GAN", training="networks"):
    """Classes of their names, whose objects hold modules by the names that theirs have."""
    nn = torch.nn

    def of(module, name, base=nn.Module):
        return type(name, (base,), {"__module__": module, "__qualname__": name})

    found = {
        name: of(f"{package}.Networks", name)
        for name in [
            *("Generator", "Discriminator", "GeneratorStage", "DiscriminatorStage", "GenerativeBasis"),
            *("DiscriminativeBasis", "UpsampleLayer", "DownsampleLayer", "ResidualBlock", "Convolution"),
        ]
    }
    found["BiasedActivationCUDA"] = of(f"{package}.FusedOperators", "BiasedActivationCUDA")
    for way in ("Up", "Down"):
        found[f"Interpolative{way}samplerCUDA"] = of(f"{package}.Resamplers", f"Interpolative{way}samplerCUDA")
    found |= {f"training.{name}": of(f"training.{training}", name) for name in ("Generator", "Discriminator")}
    return found


@contextlib.contextmanager
def importable(classes):
    modules = {}
    for cls in classes.values():
        for name in (cls.__module__.split(".")[0], cls.__module__):
            modules.setdefault(name, types.ModuleType(name))
        setattr(modules[cls.__module__], cls.__name__, cls)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def networks(torch, classes, labels=0, widths=WIDTHS, group=GROUP, expansion=2):
    """A generator and a discriminator as their code puts them together, with weights of which none is 0."""
    nn = torch.nn

    def conv(before, after, size=1, groups=1):
        made = classes["Convolution"]()
        made.Layer = nn.Conv2d(before, after, size, padding=size // 2, groups=groups, bias=False)
        return made

    def block(width):
        made, inner = classes["ResidualBlock"](), expansion * width
        made.LinearLayer1, made.LinearLayer3 = conv(width, inner), conv(inner, width)
        made.LinearLayer2 = conv(inner, inner, 3, inner // min(group, inner))
        for name in ("NonLinearity1", "NonLinearity2"):
            setattr(made, name, classes["BiasedActivationCUDA"]())
            getattr(made, name).Bias = nn.Parameter(torch.randn(inner))
        return made

    def resampling(kind, way, before, after):
        made = classes[kind]()
        made.Resampler = classes[f"Interpolative{way}samplerCUDA"]()
        made.Resampler.register_buffer("Kernel", torch.tensor(FILTER, dtype=torch.float32))
        if before != after:
            made.LinearLayer = conv(before, after)
        return made

    def stage(kind, layers):
        made = classes[kind]()
        made.Layers = nn.ModuleList(layers)
        made.DataType = torch.bfloat16
        return made

    def outer(kind, model, **attributes):
        made = classes[f"training.{kind}"]()
        made.Model = model
        for name, value in attributes.items():
            setattr(made, name, value)
        return made.eval().requires_grad_(False)

    numbers = 2 * LATENT if labels else LATENT
    gen, disc = classes["Generator"](), classes["Discriminator"]()
    first, last = classes["GenerativeBasis"](), classes["DiscriminativeBasis"]()
    first.Basis = nn.Parameter(torch.randn(widths[0], 4, 4))
    first.LinearLayer = nn.Linear(numbers, widths[0], bias=False)
    last.Basis = nn.Conv2d(widths[0], widths[0], 4, groups=widths[0], bias=False)
    last.LinearLayer = nn.Linear(widths[0], widths[0] if labels else 1, bias=False)
    before = [first, *(resampling("UpsampleLayer", "Up", a, b) for a, b in itertools.pairwise(widths))]
    gen.MainLayers = nn.ModuleList(
        stage("GeneratorStage", [head, *(block(width) for _ in range(BLOCKS))])
        for head, width in zip(before, widths, strict=True)
    )
    gen.AggregationLayer = conv(widths[-1], 3)
    back = widths[::-1]
    after = [*(resampling("DownsampleLayer", "Down", a, b) for a, b in itertools.pairwise(back)), last]
    disc.ExtractionLayer = conv(3, back[0])
    disc.MainLayers = nn.ModuleList(
        stage("DiscriminatorStage", [*(block(width) for _ in range(BLOCKS)), tail])
        for tail, width in zip(after, back, strict=True)
    )
    if labels:
        gen.EmbeddingLayer = nn.Linear(labels, LATENT, bias=False)
        disc.EmbeddingLayer = nn.Linear(labels, widths[0], bias=False)
    said = dict(z_dim=LATENT, c_dim=labels, img_resolution=2 << len(widths))
    return outer("Generator", gen, **said), outer("Discriminator", disc)


def snapshot(torch, path, labels=0, change=None, package="R3GAN", training="networks", **options):
    """Their file, with what it holds besides; `change` of the networks before. Returns (path, generator, disc)."""
    torch.manual_seed(0)
    classes = made_of(torch, package, training)
    gen, disc = networks(torch, classes, labels, **options)
    if change is not None:
        change(gen, disc)
    optimizer = torch.optim.Adam(disc.Model.ExtractionLayer.parameters(), lr=1e-3)
    tree = {"G": gen, "D": disc, "G_ema": gen, "training_set_kwargs": {"path": "x", "use_labels": False}}
    tree |= {"cur_nimg": 1000, "D_opt_state": optimizer.state_dict()}
    with importable(classes), open(path, "wb") as file:
        pickle.dump(tree, file)
    return path, gen, disc


def arrays_of(network):
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "labels, package, training", [(0, "R3GAN", "networks"), (3, "BaselineGAN", "networks_baseline")]
)
def test_a_snapshot_becomes_a_run_and_its_weights_come_back(torch, tmp_path, capsys, labels, package, training):
    path, gen, disc = snapshot(torch, tmp_path / "a.pkl", labels, package=package, training=training)
    convert.run(convert.Convert((path,), tmp_path / "run"))
    classes = f", {labels} classes" if labels else ""
    assert f"G_ema and D of 16 pixels{classes} are" in capsys.readouterr().out
    run = runs.load(tmp_path / "run")
    expected = r3gan.Config(
        image_size=16, channels=3, widths=WIDTHS, blocks=BLOCKS, group_size=GROUP, latent_dim=LATENT,
        conditional=labels > 0, classes=labels or None, bfloat16_stages=0,
    )  # fmt: skip
    assert run.cfg.recipe == expected.recipe
    assert dataclasses.replace(run.cfg, **{f.name: None for f in dataclasses.fields(r3gan.Recipe)}) == (
        dataclasses.replace(expected, **{f.name: None for f in dataclasses.fields(r3gan.Recipe)})
    )
    same = np.testing.assert_array_equal
    params, theirs = flatten_dict(run.state.ema, sep="/"), arrays_of(gen)
    grouped = theirs["Model.MainLayers.2.Layers.1.LinearLayer2.Layer.weight"]
    same(params["16x16_block0/grouped"][2, 1, 3, 5], grouped[5, 3, 2, 1])
    same(params["basis"][1, 2, 4], theirs["Model.MainLayers.0.Layers.0.Basis"][4, 1, 2])

    convert.run(convert.Convert((tmp_path / "run",), tmp_path / "back"))
    for name, network in (("G_ema", gen), ("D", disc)):
        back, wanted = read_state_dict(tmp_path / "back" / f"{name}.pth"), arrays_of(network)
        assert set(back) == set(wanted)
        for key, array in wanted.items():
            same(back[key], array, err_msg=key)


@pytest.mark.parametrize("labels", [0, 3])
def test_it_computes_what_pytorch_does_with_the_same_weights(torch, tmp_path, labels, quick_compile):
    """By the networks of tests/torch_r3gan.py, which test_r3gan.py compares with the method."""
    import torch_r3gan

    path, gen, disc = snapshot(torch, tmp_path / "a.pkl", labels)
    cfg, state = r3gan_files.state_of(persistent_pickle.read_networks(path, r3gan_files.CLASSES))
    theirs = torch_r3gan.Generator(WIDTHS, BLOCKS, GROUP, LATENT, 3, labels)
    judge = torch_r3gan.Discriminator(WIDTHS, BLOCKS, GROUP, 3, labels)

    def copy(to, weight):
        to.data = weight.detach().reshape(to.shape)

    def copy_blocks(stage, blocks):
        for ours, block in zip(stage, blocks, strict=True):
            copy(ours.expand.weight, block.LinearLayer1.Layer.weight)
            copy(ours.grouped.weight, block.LinearLayer2.Layer.weight)
            copy(ours.project.weight, block.LinearLayer3.Layer.weight)
            copy(ours.bias1, block.NonLinearity1.Bias)
            copy(ours.bias2, block.NonLinearity2.Bias)

    for i, stage in enumerate(gen.Model.MainLayers):
        copy_blocks(theirs.stages[i], stage.Layers[1:])
    for i, stage in enumerate(disc.Model.MainLayers):
        copy_blocks(judge.stages[i], stage.Layers[:-1])
    copy(theirs.basis, gen.Model.MainLayers[0].Layers[0].Basis)
    copy(theirs.latent.weight, gen.Model.MainLayers[0].Layers[0].LinearLayer.weight)
    copy(theirs.widen[2].weight, gen.Model.MainLayers[2].Layers[0].LinearLayer.Layer.weight)
    copy(theirs.to_picture.weight, gen.Model.AggregationLayer.Layer.weight)
    copy(judge.from_picture.weight, disc.Model.ExtractionLayer.Layer.weight)
    copy(judge.widen[0].weight, disc.Model.MainLayers[0].Layers[-1].LinearLayer.Layer.weight)
    copy(judge.basis.weight, disc.Model.MainLayers[2].Layers[-1].Basis.weight)
    copy(judge.judge.weight, disc.Model.MainLayers[2].Layers[-1].LinearLayer.weight)
    if labels:
        copy(theirs.embed, gen.Model.EmbeddingLayer.weight.T)
        copy(judge.embed, disc.Model.EmbeddingLayer.weight.T)
    z = np.random.default_rng(0).normal(size=(3, LATENT)).astype(np.float32)
    label = np.array([2, 0, 1], np.int32) if labels else None
    their_label = None if label is None else torch.tensor(label.astype(np.int64))
    with torch.no_grad():
        pictures = theirs(torch.tensor(z), their_label)
        logits = judge(pictures, their_label).numpy()
    pictures = pictures.numpy().transpose(0, 2, 3, 1)
    ours = r3gan.apply(r3gan.Generator(cfg), state.ema, z, label)
    assert np.linalg.norm(ours - pictures) < 1e-5 * np.linalg.norm(pictures) and pictures.std() > 0.1
    ours = r3gan.apply(r3gan.Discriminator(cfg), state.disc.params, pictures, label)
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())


def test_the_authors_sizes_are_taken_for_their_presets():
    """By shapes alone, as no such weights are here; groups, blocks and settings are those of the preset."""
    for name, recipe in r3gan.PRESETS.items():
        if name == "small":
            continue
        cfg = r3gan.Config(preset=name, channels=3, conditional=name[:2] in ("ci", "im"), classes=None)
        cfg = dataclasses.replace(cfg, classes=10 if cfg.conditional else None)
        shapes = jax.eval_shape(lambda key, cfg=cfg: r3gan.init(key, cfg), jax.random.key(0)).gen.params
        arrays = {}
        for ours, x in flatten_dict(shapes, sep="/").items():
            theirs = r3gan_files.name_of(ours, cfg, "generator")
            empty = np.broadcast_to(np.int8(0), x.shape)
            arrays[theirs] = r3gan_files._turned(empty, ours, theirs)
        found = r3gan_files.config_of(persistent_pickle.Network("Generator", {}, arrays))
        assert found.preset == name
        assert found.recipe == dataclasses.replace(recipe, bfloat16_stages=0)
        assert found.classes == cfg.classes and found.expansion == 2


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        r3gan_files.import_files([path], path.with_suffix(".run"))
    assert "\n" not in str(error.value)
    assert not path.with_suffix(".run").exists()


def test_other_networks_are_refused_by_name(torch, tmp_path):
    path = tmp_path / "a.pkl"

    def of(change=None, **options):
        return snapshot(torch, path, change=change, **options)[0]

    def without_basis(gen, disc):
        del gen.Model.MainLayers[0].Layers[0].Basis

    def without_bias(gen, disc):
        del gen.Model.MainLayers[1].Layers[1].NonLinearity1.Bias

    def with_more(gen, disc):
        disc.Model.register_buffer("more", torch.ones(1))

    def with_another_filter(gen, disc):
        gen.Model.MainLayers[1].Layers[0].Resampler.Kernel[0, 0] = 1

    def with_a_hole(gen, disc):
        gen.Model.AggregationLayer.Layer.weight[0] = np.nan

    def with_a_wider_kernel(gen, disc):
        for block in disc.Model.MainLayers[0].Layers[:-1]:
            block.LinearLayer2.Layer.weight = torch.nn.Parameter(torch.ones(8, 4, 5, 5))

    def with_fewer_blocks(gen, disc):
        gen.Model.MainLayers[0].Layers = gen.Model.MainLayers[0].Layers[:-1]

    def with_other_groups(gen, disc):
        for block in gen.Model.MainLayers[0].Layers[1:]:
            block.LinearLayer2.Layer.weight = torch.nn.Parameter(torch.ones(12, 6, 3, 3))

    refused(of(without_basis), "without the learned 4x4 pixels")
    refused(of(without_bias), r"no Model\.MainLayers\.1\.Layers\.1\.NonLinearity1\.Bias")
    refused(of(with_more), r"D holds Model\.more")
    refused(of(with_another_filter), r"another filter than \[1, 3, 3, 1\]")
    refused(of(with_a_hole), "training.*failed")
    refused(of(with_a_wider_kernel), r"shape \(8, 4, 5, 5\), where \(8, 4, 3, 3\)")
    refused(of(with_fewer_blocks), r"blocks that differ from stage to stage, \[1, 2, 2\]")
    refused(of(with_other_groups), r"channels in a group that differ .*\[6, 4, 4\]")
    refused(of(widths=(4,)), "not accepted: image_size must be")
    with pytest.raises(UserError, match="give one file, got 2"):
        r3gan_files.import_files([path, path], tmp_path / "run")


class Harm:
    """Would leave a file behind if it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_executed_and_no_other_class_is_made(torch, tmp_path):
    trace = tmp_path / "executed"

    def harmful(gen, disc):
        gen.Model.MainLayers[0].DataType = Harm(trace)

    def foreign(gen, disc):
        gen.Model.more = torch.nn.ReLU()

    refused(snapshot(torch, tmp_path / "a.pkl", change=harmful)[0], "asks for the Python object .*system")
    refused(snapshot(torch, tmp_path / "b.pkl", change=foreign)[0], "holds a whole model|asks for the Python object")
    # A class that is known, called like a function or with a state that is none.
    head = b"\x80\x02}X\x05\x00\x00\x00G_emacR3GAN.Networks\nGenerator\n"
    for name, rest in (("call", b")Rs."), ("arguments", b"K\x01\x85\x81s."), ("state", b")\x81K\x01bs.")):
        (tmp_path / f"{name}.pkl").write_bytes(head + rest)
        refused(tmp_path / f"{name}.pkl", "not executed|nothing in it was executed|damaged")
    # Files of StyleGAN2 have no such classes: there none is made.
    path = snapshot(torch, tmp_path / "c.pkl")[0]
    with pytest.raises(UserError, match=r"asks for the Python object 'training\.networks\.Generator'"):
        persistent_pickle.read_networks(path)
    assert not trace.exists()
