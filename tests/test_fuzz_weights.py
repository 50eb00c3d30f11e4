"""Files of weights changed at random: each gives weights or a sentence, and takes little more memory than its size.

500 of each kind are among the slow tests, a few of each are not. The changes are seeded, so a failure can be repeated;
the assertion names the number of the file.
"""

import functools
import io
import json
import pickle
import re
import struct
import tempfile
import zipfile
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy
import test_vgg
import test_weights

from ganstyle_jax.features import glyph_reader, torch_files, weights
from ganstyle_jax.features.vgg import VGG
from ganstyle_jax.gan import convert, dcgan
from ganstyle_jax.io.files import UserError

FEW, MANY = 12, 500
MEMORY = 512 << 20  # bytes
SMALL = VGG(((4, 5), (6,)))
CONFIG = dcgan.Config(image_size=16, width=2, latent_dim=3, channels=1)
INTEGERS = [struct.pack("<I", 2**32 - 1), struct.pack("<Q", 2**63 - 1), struct.pack("<q", -1), b"\0" * 8, b"\xff" * 16]


# ---------------------------------------------------------------------------------------------------------------------
# Sound files


def vgg_state():
    params = test_vgg.random_params(SMALL)
    names = test_vgg.torchvision_shapes(SMALL.channels)
    state = {}
    for name, layer in zip(names, [layer for layer in params if layer != "input"], strict=True):
        state[f"{name}.weight"] = np.asarray(params[layer]["kernel"]).transpose(3, 2, 0, 1)
        state[f"{name}.bias"] = np.asarray(params[layer]["bias"])
    return state


def keras_state():
    params = test_vgg.random_params(SMALL)
    return {
        f"{layer.replace('conv', 'block').replace('_', '_conv')}_{part}": np.asarray(params[layer][part])
        for layer in params
        if layer != "input"
        for part in ("kernel", "bias")
    }


def dcgan_states():
    state = jax.eval_shape(lambda key: dcgan.init(key, CONFIG), jax.random.key(0))
    ones = functools.partial(jax.tree.map, lambda x: np.full(x.shape, 0.5, np.float32))
    return {
        "netG": convert.generator_to_torch(ones(state.gen.variables), CONFIG),
        "netD": convert.discriminator_to_torch(ones(state.disc.variables), CONFIG),
    }


def zipped_pth(state):
    path = io.BytesIO()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members_of_pth(state).items():
            archive.writestr(name, content)
    return path.getvalue()


def members_of_pth(state):
    with tempfile.TemporaryDirectory() as place:
        torch_files.write_state_dict(Path(place, "x.pth"), state)
        with zipfile.ZipFile(Path(place, "x.pth")) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def legacy_pth(state):
    """The older layout, from the pickle of the newer one: storages gain a field, and follow the pickles."""
    pickled = re.sub(rb"t(q.|r....|)Q", rb"Nt\1Q", members_of_pth(state)["archive/data.pkl"], flags=re.DOTALL)
    arrays = [np.ascontiguousarray(array) for array in state.values()]
    head = b"".join(pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    keys = pickle.dumps([str(i) for i in range(len(arrays))], 2)
    return head + pickled + keys + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays)


def hdf5(state, **options):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, array in state.items():
            file.create_dataset(name, data=array, **(options if array.ndim == 4 else {}))
    return content.getvalue()


def npz(state, save=np.savez):
    content = io.BytesIO()
    save(content, **state)
    return content.getvalue()


def own(tmp_path):
    weights.write(tmp_path / "own", SMALL, test_vgg.random_params(SMALL))
    return (tmp_path / "own").read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Changes


def change_bytes(rng, content):
    """Flips bits, cuts off, repeats, leaves out, or writes integers that are too large for what they may stand for."""
    data = bytearray(content)
    # Half of the time near one of the ends, where most formats say what they hold.
    span = min(len(data), 1500)

    def place():
        near = [int(rng.integers(span)), len(data) - 1 - int(rng.integers(span)), int(rng.integers(len(data)))]
        return near[rng.integers(3)] % len(data)

    kind = rng.integers(6)
    if kind <= 1:
        for _ in range(rng.integers(1, 9)):
            data[place()] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del data[place() :]
    elif kind == 3:
        number, at = INTEGERS[rng.integers(len(INTEGERS))], place()
        data[at : at + len(number)] = number
    elif kind == 4:
        at = place()
        data[at:at] = data[place() :][: int(rng.integers(1, 64))]
    else:
        at = place()
        del data[at : at + int(rng.integers(1, 64))]
    return bytes(data)


def change_members(rng, content):
    """One member of an archive with changed bytes, and sums that are right."""
    if rng.integers(4) == 0:
        return change_bytes(rng, content)
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(changed, "w") as new:
        infos = archive.infolist()
        pickled = [i for i, info in enumerate(infos) if info.filename.endswith(".pkl")]
        chosen = pickled[0] if pickled and rng.integers(4) else int(rng.integers(len(infos)))
        for i, info in enumerate(infos):
            member = archive.read(info)
            new.writestr(info, change_bytes(rng, member) if i == chosen and member else member, info.compress_type)
    return changed.getvalue()


def deep(levels=50_000):
    return "[" * levels + "]" * levels


STRANGE = [[], {}, "", "x" * 1000, None, True, -1, 2**63, 2**200, 1e308, [[[[]]]], {"a": 1}, "mean", [1] * 1000, "NaN"]


def change_json(rng, value):
    """The value with something in it replaced, left out or added."""
    if isinstance(value, dict) and value and rng.integers(5):
        key = list(value)[rng.integers(len(value))]
        if rng.integers(8) == 0:
            return {k: x for k, x in value.items() if k != key}
        return value | {key: change_json(rng, value[key])}
    if isinstance(value, list) and value and rng.integers(4):
        i = int(rng.integers(len(value)))
        return [*value[:i], change_json(rng, value[i]), *value[i + 1 :]]
    if isinstance(value, str) and value.startswith("{") and rng.integers(8):  # JSON within JSON
        if rng.integers(8) == 0:
            return value[:-1] + ', "padding": ' + deep() + "}"
        return json.dumps(change_json(rng, json.loads(value)))
    return STRANGE[rng.integers(len(STRANGE))]


def change_safetensors(rng, content):
    if rng.integers(3) == 0:
        return change_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header and rng.integers(3):
        header["__metadata__"] = change_json(rng, header["__metadata__"])
    else:
        header = change_json(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


# ---------------------------------------------------------------------------------------------------------------------
# Readers


@functools.cache
def new_state(cfg):
    state = jax.eval_shape(lambda key: DRAW(key, cfg), jax.random.key(0))
    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state)


DRAW = dcgan.init


def read_dcgan(path):
    convert.state_of_files([path])


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def fuzz(tmp_path, content, change, read, count, name="file"):
    """Reads so many changed files; of what is sound there is at least the file itself."""
    path = tmp_path / name
    path.write_bytes(content)
    read(path)
    before = reset_peak() if Path("/proc/self/clear_refs").exists() else None
    refused = 0
    for number in range(count):
        path.write_bytes(change(np.random.default_rng(number), content))
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 2000, number
        except Exception as error:
            raise AssertionError(f"file {number} raises {type(error).__name__}: {error}") from error
    assert refused > count / 20
    if before is not None:
        assert peak() - before < MEMORY + len(content), f"{peak() - before:,} bytes"


def files(tmp_path):
    """Of each kind: content, how it is changed, what reads it."""
    vgg, keras, both = vgg_state(), keras_state(), dcgan_states()
    stored = {name: np.ascontiguousarray(array) for name, array in vgg.items()}
    of_dcgan = {name: np.ascontiguousarray(array) for name, array in both["netG"].items()}
    return {
        "pth": (zipped_pth(vgg), change_members, weights.read),
        "pth of dcgan": (zipped_pth(both["netG"]), change_members, read_dcgan),
        "legacy pth": (legacy_pth(vgg), change_bytes, weights.read),
        "legacy pth of codes": (legacy_pth(test_weights.codebook_state()[0]), change_bytes, weights.read),
        "legacy pth of dcgan": (legacy_pth(both["netG"]), change_bytes, read_dcgan),
        "own safetensors": (own(tmp_path), change_safetensors, weights.read),
        "safetensors": (safetensors.numpy.save(stored), change_safetensors, weights.read),
        "safetensors of dcgan": (safetensors.numpy.save(of_dcgan), change_safetensors, read_dcgan),
        "glyph reader": (
            glyph_reader.SHIPPED.read_bytes(),
            change_safetensors,
            lambda path: glyph_reader._load.__wrapped__(path),
        ),
        "h5": (hdf5(keras), change_bytes, weights.read),
        "packed h5": (hdf5(keras, compression="gzip", shuffle=True), change_bytes, weights.read),
        "npz": (npz(keras), change_members, weights.read),
        "packed npz": (npz(keras, np.savez_compressed), change_members, weights.read),
    }


KINDS = [
    *("pth", "pth of dcgan", "legacy pth", "legacy pth of codes", "legacy pth of dcgan", "own safetensors"),
    *("safetensors", "safetensors of dcgan", "glyph reader", "h5", "packed h5", "npz", "packed npz"),
]


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_give_weights_or_a_sentence(tmp_path, monkeypatch, kind, count):
    monkeypatch.setattr(dcgan, "init", lambda key, cfg: new_state(cfg))  # made once for each shape, without drawing
    fuzz(tmp_path, *files(tmp_path)[kind], count)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_changed_indices_give_weights_or_a_sentence(tmp_path, count):
    names = list(vgg_state())
    parts = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for part in set(parts.values()):
        held = {n: np.ascontiguousarray(vgg_state()[n]) for n in names if parts[n] == part}
        safetensors.numpy.save_file(held, tmp_path / part)

    def change(rng, content):
        if rng.integers(3) == 0:
            return change_bytes(rng, content)
        return json.dumps(change_json(rng, json.loads(content))).encode()

    content = json.dumps({"metadata": {"total_size": 1}, "weight_map": parts}).encode()
    fuzz(tmp_path, content, change, weights.read, count, "model.safetensors.index.json")
