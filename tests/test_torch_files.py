"""State dicts against the real PyTorch, and files made to do harm, which must do none."""

import collections
import copyreg
import io
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganstyle_jax.features import torch_pickle, torch_writing
from ganstyle_jax.features.torch_files import find_state_dict, read_state_dict, write_state_dict
from ganstyle_jax.io.files import UserError

REQUIRED = os.environ.get("GANSTYLE_REQUIRE_DATA") == "1"
WEIGHTS = [
    "mnist_lenet.pth",
    "vgg19_16x_distilled/5SE.pth",
    "vgg19_16x_distilled/5SD.pth",
    "lpips_v0.1/alex.pth",
    "lpips_v0.1/vgg.pth",
    "vgg19_normalised/vgg_r31.pth",
]
DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
MAGIC = 0x1950A86A20F9469CFC6C


@pytest.fixture(scope="module")
def torch():
    try:
        import torch
    except ImportError:
        if REQUIRED:
            raise
        pytest.skip("needs PyTorch, the reference these files are compared with")
    torch.set_num_threads(1)
    return torch


def weights(data_dir: Path, name: str) -> Path:
    path = data_dir / "weights" / name
    if not path.is_file():
        if REQUIRED:
            pytest.fail(f"{path} is missing; set GANSTYLE_TEST_DATA to the folder of the test data")
        pytest.skip(f"{path} is missing; set GANSTYLE_TEST_DATA to the folder of the test data")
    return path


def as_numpy(tensor) -> np.ndarray:
    """The values of a tensor; numpy has no bfloat16, which goes by its bits."""
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def assert_same(array, tensor) -> None:
    expected = as_numpy(tensor)
    assert (type(array), array.shape, array.dtype) == (np.ndarray, expected.shape, expected.dtype)
    assert array.tobytes() == expected.tobytes()  # exact, NaN and the sign of zero included


def zip_file(path: Path, pickled: bytes, storages=(), **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for number, content in enumerate(storages):
            archive.writestr(f"archive/data/{number}", content)
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return path


def legacy_file(path: Path, pickled: bytes, keys: bytes = pickle.dumps([], 2), storages: bytes = b"") -> Path:
    head = b"".join(pickle.dumps(item, 2) for item in (MAGIC, 1001, {"little_endian": True}))
    path.write_bytes(head + pickled + keys + storages)
    return path


def tensor_pickle(numel=6, size=(2, 3), stride=(3, 1), offset=0, storage="FloatStorage", key="0", legacy=False, **pid):
    """A state dict {"w": tensor} as bytes, with whatever lies are asked for."""
    pid_tuple = ("storage", torch_writing._TorchName("torch", storage), key, "cpu", numel, *([None] if legacy else []))
    pid_tuple = pid.get("pid", pid_tuple)

    class Pickler(torch_writing._Pickler):
        def persistent_id(self, obj):
            return pid_tuple if obj == "STORAGE" else None

    class Rebuilt:
        pass

    def save_rebuilt(self, obj):
        self.save(torch_writing._REBUILD)
        self.save(("STORAGE", offset, size, stride, False, collections.OrderedDict()))
        self.write(pickle.REDUCE)

    Pickler.dispatch = {**torch_writing._Pickler.dispatch, Rebuilt: save_rebuilt}
    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"w": Rebuilt()})
    return out.getvalue()


def write_shared(path: Path, array: np.ndarray, names: list[str]) -> None:
    """A state dict of so many tensors that are all of one storage."""
    tensor = tensor_pickle(numel=array.size, size=array.shape, stride=(1,))
    start, end = tensor.index(b"ctorch._utils"), tensor.rindex(b"R") + 1
    items = b"".join(unicode_op(name) + tensor[start:end] + b"s" for name in names)
    zip_file(path, b"\x80\x02}" + items + b".", [array.tobytes()])


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# What PyTorch writes, read here.


@pytest.mark.parametrize("name", WEIGHTS)
def test_real_files_equal_torch_load(torch, data_dir, name):
    path = weights(data_dir, name)
    expected = torch.load(path, map_location="cpu", weights_only=True)
    expected = expected.get("model", expected)
    state = find_state_dict(read_state_dict(path))
    assert list(state) == list(expected)
    for key, array in state.items():
        assert_same(array, expected[key])


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_of_a_model_and_everything_around_it(torch, tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))  # the latter has an int64 scalar
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2, 5, 5)).sum().backward()
    optimizer.step()
    weight = torch.nn.Parameter(torch.arange(3.0))
    weight.note = "an attribute makes PyTorch write a parameter with state"
    tagged = torch.arange(2)
    tagged.note = "and a tensor through _rebuild_from_type_v2"
    saved = {
        "netG": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": model[0].bias,
        "with_state": weight,
        "tagged": tagged,
        "other": [
            1,
            2.5,
            "text",
            None,
            True,
            b"bytes",
            torch.Size([2, 3]),
            torch.float16,
            torch.device("cpu"),
            (1, -7),
        ],
    }
    path = tmp_path / "model.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    tree = read_state_dict(path)
    assert tree["other"] == [1, 2.5, "text", None, True, b"bytes", (2, 3), np.dtype("float16"), "cpu", (1, -7)]
    assert type(tree["netG"]) is dict and list(tree["netG"]) == list(saved["netG"])
    for name, tensor in saved["netG"].items():
        assert_same(tree["netG"][name], tensor)
    assert tree["netG"]["1.num_batches_tracked"].shape == ()
    assert_same(tree["optimizer"]["state"][0]["exp_avg"], saved["optimizer"]["state"][0]["exp_avg"])
    assert tree["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert_same(tree["parameter"], model[0].bias.detach())
    assert_same(tree["with_state"], weight.detach())
    assert_same(tree["tagged"], tagged)
    assert find_state_dict(tree).keys() == saved["netG"].keys()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_pickle_protocol(torch, tmp_path, protocol, zipped):
    saved = collections.OrderedDict(w=torch.arange(6.0).reshape(2, 3), b=torch.tensor(True), more={"text": "é" * 300})
    torch.save(saved, tmp_path / "x.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    tree = read_state_dict(tmp_path / "x.pth")
    assert_same(tree["w"], saved["w"])
    assert_same(tree["b"], saved["b"])
    assert tree["more"] == {"text": "é" * 300}


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_one_storage_share_memory_and_are_writable(torch, tmp_path, zipped):
    base = torch.arange(12.0)
    views = {"base": base, "tail": base[8:], "transposed": base.view(3, 4).T, "expanded": base[3:4].expand(2, 5)}
    torch.save(views, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    state = read_state_dict(tmp_path / "x.pth")
    for name, tensor in views.items():
        assert_same(state[name], tensor)
    assert state["transposed"].strides == (4, 16)
    state["base"][8] = -1.0
    assert state["tail"][0] == state["transposed"][0, 2] == -1.0


def test_big_endian_archive(tmp_path):
    pickled = tensor_pickle(numel=6)
    storage = np.arange(6, dtype=">f4").tobytes()
    path = zip_file(tmp_path / "x.pth", pickled, [storage], byteorder=b"big")
    np.testing.assert_array_equal(read_state_dict(path)["w"], np.arange(6.0).reshape(2, 3))
    path = zip_file(tmp_path / "x.pth", pickled, [storage], byteorder=b"middle")
    assert "byte order" in refusal(path)


def test_storages_of_cuda_and_of_parts(tmp_path):
    """The device is ignored; a view of a storage is how PyTorch before 0.4 saved shared ones."""
    data = np.arange(6, dtype="<f4").tobytes()
    kind = torch_writing._TorchName("torch.cuda", "FloatStorage")
    path = zip_file(tmp_path / "x.pth", tensor_pickle(pid=("storage", kind, "0", "cuda:1", 6)), [data])
    np.testing.assert_array_equal(read_state_dict(path)["w"], np.arange(6.0).reshape(2, 3))

    def with_part(part):
        pickled = tensor_pickle(pid=("storage", kind, "k", "cuda:0", 6, part), size=(2,), stride=(1,))
        return legacy_file(tmp_path / "y.pth", pickled, pickle.dumps(["k"], 2), struct.pack("<q", 6) + data)

    np.testing.assert_array_equal(read_state_dict(with_part(("v", 3, 2)))["w"], [3, 4])
    assert "past its storage" in refusal(with_part(("v", 3, 1)))
    assert "past its end" in refusal(with_part(("v", 5, 2)))


@st.composite
def strided_tensors(draw):
    """(dtype, bytes of the storage, size, stride, offset): overlapping, expanded, permuted, empty, zero-dim views."""
    size = draw(st.lists(st.integers(0, 4), max_size=4))
    stride = draw(st.lists(st.integers(0, 5), min_size=len(size), max_size=len(size)))
    offset = draw(st.integers(0, 3))
    numel = offset + 1 + sum(max(n - 1, 0) * step for n, step in zip(size, stride, strict=True))
    dtype = draw(st.sampled_from(DTYPES))
    itemsize = np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize
    data = draw(st.binary(min_size=numel * itemsize, max_size=numel * itemsize))
    if dtype == "bool":
        data = bytes(byte & 1 for byte in data)
    return dtype, data, size, stride, offset


@settings(max_examples=60, deadline=None)
@given(strided_tensors(), st.booleans())
def test_any_dtype_size_and_stride(torch, case, zipped):
    dtype, data, size, stride, offset = case
    storage = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
    tensor = storage.as_strided(size, stride, offset)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"x": tensor}, f"{folder}/x.pth", _use_new_zipfile_serialization=zipped)
        assert_same(read_state_dict(f"{folder}/x.pth")["x"], tensor)


# What is written here, read by PyTorch.


@settings(max_examples=40, deadline=None)
@given(strided_tensors())
def test_torch_reads_what_is_written(torch, case):
    dtype, data, size, stride, offset = case
    array = as_numpy(torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).as_strided(size, stride, offset))
    with tempfile.TemporaryDirectory() as folder:
        write_state_dict(f"{folder}/x.pth", {"layer.weight": array, "é": array[..., None]})
        loaded = torch.load(f"{folder}/x.pth", weights_only=True)
        assert type(loaded) is collections.OrderedDict and list(loaded) == ["layer.weight", "é"]
        assert_same(array, loaded["layer.weight"])
        assert_same(array[..., None], loaded["é"])
        assert loaded["layer.weight"].is_contiguous()
        again = read_state_dict(f"{folder}/x.pth")
        assert_same(again["layer.weight"], loaded["layer.weight"])


def test_written_state_loads_into_a_module(torch, tmp_path):
    import jax.numpy as jnp

    weight = jnp.arange(6.0).reshape(3, 2)
    write_state_dict(tmp_path / "new folder" / "x.pth", {"weight": weight, "bias": np.ones(3, ">f4")})
    layer = torch.nn.Linear(2, 3)
    layer.load_state_dict(torch.load(tmp_path / "new folder" / "x.pth", weights_only=True))
    assert_same(np.asarray(weight), layer.weight.detach())
    assert_same(np.ones(3, np.float32), layer.bias.detach())


def test_writing_is_reproducible_and_whole_or_absent(tmp_path):
    state = {"w": np.arange(3.0), "empty": np.zeros((0, 2), np.float32)}
    write_state_dict(tmp_path / "a.pth", state)
    write_state_dict(tmp_path / "b.pth", state)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    with pytest.raises(UserError, match=r"'bad' of dtype <U4.*float32"):
        write_state_dict(tmp_path / "a.pth", {"w": np.zeros(2), "bad": np.array("text")})
    with pytest.raises(UserError, match="complex64"):
        write_state_dict(tmp_path / "a.pth", {"w": np.zeros(2, np.complex64)})
    with pytest.raises(UserError, match="3 of dtype"):
        write_state_dict(tmp_path / "a.pth", {3: np.zeros(2)})  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pth", "b.pth"]


# Wrappings.


def test_find_state_dict():
    state = {"conv.weight": np.ones(2), "conv.bias": np.zeros(2)}
    for wrapped in (
        state,
        {"state_dict": state, "epoch": 3},
        {"model": state, "optimizer": {"state": {0: {"step": np.ones(()), "exp_avg": np.ones(2)}}}},
        {"args": {"lr": 1}, "netG": {f"module.{name}": value for name, value in state.items()}},
        {"a": {"b": {"params_ema": state}}},
    ):
        found = find_state_dict(wrapped)
        assert list(found) == list(state) and found["conv.weight"] is state["conv.weight"]


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.", "_orig_mod._orig_mod."],
)
def test_prefixes_of_wrappers_in_any_order(prefix):
    state = {"conv.weight": np.ones(2), "conv.bias": np.zeros(2)}
    found = find_state_dict({prefix + name: value for name, value in state.items()})
    assert list(found) == list(state) and found["conv.weight"] is state["conv.weight"]
    assert list(find_state_dict({f"conv.{prefix}weight": np.ones(2)})) == ["conv.weight"]  # a part that was wrapped


def test_names_that_would_become_one_are_left_as_they_are():
    state = {"module.weight": np.ones(2), "weight": np.zeros(2)}
    assert find_state_dict(state) == state


def test_find_state_dict_asks_where_there_are_several():
    generator, critic = {"w": np.ones(2)}, {"w": np.zeros(2)}
    tree = {"netG": generator, "netD": critic, "old": {"netG": critic}}
    with pytest.raises(UserError, match="several state dicts, name one of them: 'netD', 'netG'"):
        find_state_dict(tree)
    assert find_state_dict(tree, "netG")["w"] is generator["w"]
    assert find_state_dict(tree, "old/netG")["w"] is critic["w"]
    with pytest.raises(UserError, match="no state dict 'netQ'; it has: 'netD', 'netG', 'old/netG'"):
        find_state_dict(tree, "netQ")
    with pytest.raises(UserError, match="no dict of tensors in the file, which holds: 'epoch'"):
        find_state_dict({"epoch": 3})
    loop: dict = {}
    loop["self"] = loop
    with pytest.raises(UserError, match="no dict of tensors"):
        find_state_dict(loop)
    laughs: dict = {"w": 1}
    for _ in range(4):
        laughs = {str(i): laughs for i in range(1000)}
    with pytest.raises(UserError, match="no dict of tensors"):
        find_state_dict(laughs)


# Files that are not what they should be.


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"  \n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"just some words\n", "is text"),
        (b"\x89HDF\r\n\x1a\n\0\0", "not a PyTorch file"),
        (pickle.dumps({"w": 1}), "not one that torch.save wrote"),
        (pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2), "protocol version 1002; 1001 is accepted"),
    ],
)
def test_foreign_files(tmp_path, content, words):
    (tmp_path / "x.pth").write_bytes(content)
    assert words in refusal(tmp_path / "x.pth")


def test_foreign_archives_and_paths(tmp_path):
    import tarfile

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("train/a.jpg", b"jpeg")
    assert "no data.pkl" in refusal(tmp_path / "photos.zip")
    script = zip_file(tmp_path / "script.pt", pickle.dumps({}, 2), **{"constants.pkl": b""})
    assert "TorchScript" in refusal(script)
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.add(tmp_path / "script.pt", "storages")
    assert "tar layout" in refusal(tmp_path / "old.pth")
    assert "No such file" in refusal(tmp_path / "absent.pth")
    assert "Is a directory" in refusal(tmp_path)
    assert "holds a list, not a dict" in refusal(zip_file(tmp_path / "list.pth", pickle.dumps([1], 2)))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, zipped):
    path = tmp_path / "x.pth"
    storage = np.arange(6, dtype="<f4").tobytes()
    if zipped:
        zip_file(path, tensor_pickle(), [storage])
    else:
        pickled = tensor_pickle(legacy=True)
        legacy_file(path, pickled, pickle.dumps(["0"], 2), struct.pack("<q", 6) + storage)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_state_dict(path)["w"], np.arange(6.0).reshape(2, 3))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(path)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_changed_byte_gives_arrays_or_a_user_error(position, value, zipped):
    storage = np.arange(6, dtype="<f4").tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pth"
        if zipped:
            zip_file(path, tensor_pickle(), [storage])
        else:
            pickled = tensor_pickle(legacy=True)
            legacy_file(path, pickled, pickle.dumps(["0"], 2), struct.pack("<q", 6) + storage)
        content = bytearray(path.read_bytes())
        content[position % len(content)] = value
        path.write_bytes(content)
        try:
            tree = read_state_dict(path)
        except UserError:
            return
        assert type(tree) is dict and all(array.nbytes <= len(content) for array in tree.values())


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    "lie, words",
    [
        ({"stride": (4, 1)}, "past its storage of 6"),
        ({"size": (3, 3)}, "past its storage of 6"),
        ({"offset": 1}, "past its storage of 6"),
        ({"offset": -1}, "whole numbers"),
        ({"size": (-2, -3)}, "whole numbers"),
        ({"stride": (-3, 1)}, "whole numbers"),
        ({"size": (2.0, 3)}, "whole numbers"),
        ({"size": (True, 3)}, "whole numbers"),
        ({"size": (6,)}, "tuples of one length"),
        ({"size": 6, "stride": 1}, "tuples of one length"),
        ({"size": (2**62, 2**62), "stride": (0, 0)}, "larger than the file"),
        ({"size": (100, 100), "stride": (0, 0)}, "larger than the file"),
        ({"size": (2, 3), "stride": (2**80, 1)}, "past its storage"),
        ({"size": (0, 2**80)}, "damaged"),
    ],
)
def test_bounds(tmp_path, lie, words, legacy):
    storage = np.arange(6, dtype="<f4").tobytes()
    pickled = tensor_pickle(**lie, legacy=legacy)
    if legacy:
        path = legacy_file(tmp_path / "x.pth", pickled, pickle.dumps(["0"], 2), struct.pack("<q", 6) + storage)
    else:
        path = zip_file(tmp_path / "x.pth", pickled, [storage])
    assert words in refusal(path)


def test_sizes_cannot_make_it_allocate(tmp_path):
    huge = 2**44  # 64 TiB of float32, far more than any machine would give
    keys = pickle.dumps(["0"], 2)
    assert "promises more than its" in refusal(
        legacy_file(tmp_path / "a.pth", tensor_pickle(numel=huge, legacy=True), keys, struct.pack("<q", huge))
    )
    assert "24 bytes in storage '0'" in refusal(zip_file(tmp_path / "b.pth", tensor_pickle(numel=huge), [b"\0" * 24]))
    assert "lacks its part 'data/0'" in refusal(zip_file(tmp_path / "c.pth", tensor_pickle()))
    with zipfile.ZipFile(tmp_path / "d.pth", "w", zipfile.ZIP_DEFLATED) as archive:  # a zip bomb in small
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), tensor_pickle(numel=2**20))
        archive.writestr("archive/data/0", b"\0" * 2**22)
    assert "compressed" in refusal(tmp_path / "d.pth")
    memo = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."  # the unpickler in C would allocate 32 GiB for this
    assert read_state_dict(zip_file(tmp_path / "e.pth", memo)) == {}
    text = b"\x80\x04\x8d" + struct.pack("<Q", 2**44) + b"."
    refusal(zip_file(tmp_path / "f.pth", text))
    refusal(legacy_file(tmp_path / "g.pth", text))


def test_what_is_made_of_little_is_counted(tmp_path, monkeypatch):
    """Each would take far more than its size: copies of a remembered text or list, objects of one byte each."""
    monkeypatch.setattr(torch_pickle, "BUDGET", torch_pickle.BUDGET // 12)  # and all else so much smaller
    latin1 = unicode_op("latin1")
    text = b"\x80\x02c_codecs\nencode\nq\x00" + unicode_op("x" * 100_000) + b"q\x01" + latin1 + b"q\x02"
    items = b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(2_000))
    contents = {
        "copies": text + b"]" + b"h\x00h\x01h\x02\x86Ra" * 200 + b".",
        "sizes": b"\x80\x02ctorch\nSize\nq\x00]q\x01(" + b"K\x01" * 10_000 + b"e" + b"h\x00h\x01\x85R" * 200 + b".",
        "pairs": b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01(" + items + b"e" + b"h\x00h\x01\x85R" * 200 + b".",
        "lists": b"\x80\x02]" + b"]a" * 100_000 + b".",
        "marks": b"\x80\x02" + b"(" * 200_000 + b".",
    }
    for name, content in contents.items():
        for container in (zip_file, legacy_file):
            assert "far more objects than a state dict has" in refusal(container(tmp_path / name, content))


def test_long_lists_of_losses_are_read(tmp_path):
    """Which people do keep beside the weights."""
    losses = pickle.dumps({"losses": [float(i) for i in range(100_000)]}, 2)
    assert len(read_state_dict(zip_file(tmp_path / "losses.pth", losses))["losses"]) == 100_000


def test_overlapping_members_are_counted_each_time(tmp_path):
    """A member inside another one: together they unpack to more than the file."""
    content = os.urandom(2**14)
    inner = zipfile.ZipInfo("archive/data/1")
    inner.file_size = inner.compress_size = len(content)
    inner.CRC = zlib.crc32(content)
    outer = inner.FileHeader() + content
    pickled = b"\x80\x02]" + b"".join(
        b"(" + unicode_op("storage") + b"ctorch\nByteStorage\n" + unicode_op(key) + unicode_op("cpu")
        + b"J" + struct.pack("<i", size) + b"tQa"
        for key, size in (("0", len(outer)), ("1", len(content)))
    ) + b"."  # fmt: skip
    path = zip_file(tmp_path / "x.pth", pickled, [outer])
    with zipfile.ZipFile(path, "a") as archive:
        info = archive.getinfo("archive/data/0")
        inner.header_offset = info.header_offset + len(info.FileHeader())
        archive.filelist.append(inner)
        archive.NameToInfo[inner.filename] = inner
        archive._didModify = True  # pyright: ignore[reportAttributeAccessIssue]
    with zipfile.ZipFile(path) as archive:
        assert sum(item.file_size for item in archive.infolist()) > path.stat().st_size
    message = refusal(path)
    assert "larger than the file" in message or "Overlapped" in message  # newer zipfile modules see it themselves


# Files made to do harm. `marker` is the harm: the control shows that the same bytes do it under the ordinary unpickler.


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


class Calls:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def unicode_op(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def call(module: str, name: str, argument: str, stack_global: bool) -> bytes:
    """The bytes of module.name(argument); with `stack_global` the name may be dotted."""
    if stack_global:
        head = b"\x80\x04" + unicode_op(module) + unicode_op(name) + pickle.STACK_GLOBAL
    else:
        head = b"\x80\x02" + f"c{module}\n{name}\n".encode()
    return head + unicode_op(argument) + pickle.TUPLE1 + pickle.REDUCE + b"."


def payloads(marker: Path) -> dict[str, tuple[bytes, str]]:
    touch, write = f"touch '{marker}'", f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": (pickle.dumps({"w": Calls(os.system, touch)}, 2), f"{os.name}.system"),
        "eval": (pickle.dumps({"w": Calls(eval, write)}, 2), "eval"),
        "exec as a key": (pickle.dumps({"a": [(Calls(exec, write),)]}, 4), "builtins.exec"),
        "text opcodes": (f"cos\nsystem\n(V{touch}\ntR.".encode(), ""),
        "INST": (f"(V{touch}\nios\nsystem\n.".encode(), ""),
        "OBJ": (b"(cos\nsystem\n" + unicode_op(touch) + b"o.", "os.system"),
        "stack global": (call("os", "system", touch, True), "os.system"),
        "dotted name": (call("pathlib", "os.system", touch, True), "pathlib.os.system"),
        "dotted listed name": (call("collections", "namedtuple.__globals__", "x", True), "namedtuple.__globals__"),
        "dotted own name": (
            call("collections", "OrderedDict.__init__.__globals__", "x", True),
            "OrderedDict.__init__.__globals__",
        ),
        "own module": (
            call("ganstyle_jax.features.torch_files", "Path", "x", False),
            "ganstyle_jax.features.torch_files.Path",
        ),
        "subprocess": (call("subprocess", "getoutput", touch, False), "subprocess.getoutput"),
        "newline in a name": (call("torch", "FloatStorage\nos.system", touch, True), "FloatStorage"),
    }


CONTROLS = ["os.system", "eval", "exec as a key", "text opcodes", "INST", "stack global", "dotted name", "subprocess"]


@pytest.mark.parametrize("container", [zip_file, legacy_file])
@pytest.mark.parametrize("name", payloads(Path("x")))
def test_harmful_pickles_are_not_executed(tmp_path, marker, name, container):
    content, forbidden = payloads(marker)[name]
    message = refusal(container(tmp_path / "x.pth", content))
    assert not marker.exists()
    assert forbidden in message and (not forbidden or "not executed" in message)
    if name in CONTROLS:
        pickle.loads(content)
        assert marker.exists()


@pytest.mark.parametrize("position", range(5))
def test_every_pickle_of_a_legacy_file_is_guarded(tmp_path, marker, position):
    parts = [pickle.dumps(item, 2) for item in (MAGIC, 1001, {}, {"w": 1}, [])]
    parts[position] = payloads(marker)["os.system"][0]
    (tmp_path / "x.pth").write_bytes(b"".join(parts))
    assert "not executed" in refusal(tmp_path / "x.pth")
    assert not marker.exists()


def test_extension_registry_is_no_way_around(tmp_path, marker):
    """EXT1 fetches a cached object without asking find_class."""
    content = b"\x80\x02\x82\xf0" + unicode_op(f"touch '{marker}'") + pickle.TUPLE1 + pickle.REDUCE + b"."
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        refusal(zip_file(tmp_path / "x.pth", content))
        assert not marker.exists()
        pickle.loads(content)
        assert marker.exists()
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)


def test_build_sets_no_attributes(tmp_path):
    """BUILD with (None, {...}) calls setattr on whatever lies there, for instance on a function of the list."""
    state = b"N" + pickle.dumps({"__doc__": "changed"}, 2)[2:-1] + pickle.TUPLE2
    content = b"\x80\x02}" + unicode_op("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + state + pickle.BUILD + b"s."
    before = torch_pickle._rebuild_tensor.__doc__
    assert "holds a function" in refusal(zip_file(tmp_path / "x.pth", content))
    assert torch_pickle._rebuild_tensor.__doc__ == before

    class Ordinary(pickle.Unpickler):
        def find_class(self, module, name):
            return torch_pickle._GLOBALS[module, name]

    try:
        Ordinary(io.BytesIO(content)).load()
        assert torch_pickle._rebuild_tensor.__doc__ == "changed"  # the control
    finally:
        torch_pickle._rebuild_tensor.__doc__ = before


def test_listed_functions_cannot_be_turned(tmp_path, marker):
    """Legal names, arguments of the wrong kind; among them a call through _rebuild_from_type_v2."""
    write = f"open({str(marker)!r}, 'w').close()"

    def reduce(name: str, arguments: bytes) -> bytes:
        return b"\x80\x02" + f"c{name}\n".encode() + arguments + pickle.REDUCE + b"."

    text, empty = unicode_op(write), pickle.EMPTY_TUPLE
    inner = b"ctorch\nSize\n"
    for content in (
        reduce("torch._tensor\n_rebuild_from_type_v2", b"(cbuiltins\neval\n" + b"N" + text + b"\x85" + b"Nt"),
        reduce("torch._tensor\n_rebuild_from_type_v2", b"(" + text + b"N" + empty + b"Nt"),
        reduce("torch._tensor\n_rebuild_from_type_v2", b"(" + inner + b"N" + empty + b"Nt"),
        reduce("torch._utils\n_rebuild_tensor_v2", b"(" + text + b"K\x00" + empty + empty + b"t"),
        reduce("torch._utils\n_rebuild_tensor_v2", empty),
        reduce("_codecs\nencode", text + unicode_op("idna") + b"\x86"),
        reduce("torch\nSize", text + b"\x85"),
        reduce("collections\nOrderedDict", text + b"\x85"),
        reduce("torch\nfloat32", text + b"\x85"),
        reduce("torch\nTensor", text + b"\x85"),
        reduce("torch\nFloatStorage", text + b"\x85"),
        b"\x80\x02" + text + empty + pickle.REDUCE + b".",  # calls a string
        b"\x80\x02" + text + text + text + b"s.",  # sets an item of a string
        b"\x80\x02" + text + text + b"a.",  # appends to a string
        b"\x80\x02}" + b"(" * 1 + b")" + b"\x85" * 200_000 + b"Nu.",  # a key whose hash would overflow the C stack
    ):
        refusal(zip_file(tmp_path / "x.pth", content))
        assert not marker.exists()


@pytest.mark.parametrize(
    "pid",
    [
        "storage",
        7,
        (),
        ("storage",),
        ("module", "x", "y", "z", 1),
        ("storage", "FloatStorage", "0", "cpu", 6),
        ("storage", torch_writing._TorchName("torch", "Size"), "0", "cpu", 6),
        ("storage", torch_writing._TorchName("torch", "FloatStorage"), 0, "cpu", 6),
        ("storage", torch_writing._TorchName("torch", "FloatStorage"), "0", "cpu", -6),
        ("storage", torch_writing._TorchName("torch", "FloatStorage"), "0", "cpu", 6.0),
        ("storage", torch_writing._TorchName("torch", "FloatStorage"), "0", "cpu", "6"),
        ("storage", torch_writing._TorchName("torch", "FloatStorage"), "../data.pkl", "cpu", 6),
        (b"storage", torch_writing._TorchName("torch", "FloatStorage"), "0", "cpu", 6),
    ],
)
def test_wrong_persistent_ids(tmp_path, pid):
    storage = np.arange(6, dtype="<f4").tobytes()
    message = refusal(zip_file(tmp_path / "x.pth", tensor_pickle(pid=pid), [storage]))
    assert "damaged" in message or "whole model" in message or "lacks its part" in message
    legacy_pid = (*pid, None) if type(pid) is tuple and len(pid) == 5 else pid
    pickled = tensor_pickle(pid=legacy_pid)
    refusal(legacy_file(tmp_path / "y.pth", pickled, pickle.dumps(["0"], 2), struct.pack("<q", 6) + storage))


def test_textual_persistent_id_and_misused_storage(tmp_path):
    refusal(zip_file(tmp_path / "x.pth", b"\x80\x02Pstorage\n."))
    pid = b"(" + unicode_op("storage") + b"ctorch\n%s\n" + unicode_op("0") + unicode_op("cpu") + b"K\x06tQ"
    one, other = pid % b"FloatStorage", pid % b"IntStorage"
    data = np.zeros(6, "<f4").tobytes()
    alone = b"\x80\x02}" + unicode_op("w") + one + b"s."
    assert "holds a Storage outside a tensor" in refusal(zip_file(tmp_path / "x.pth", alone, [data]))
    both = b"\x80\x02]" + one + b"a" + other + b"a."
    assert "both as float32 and as int32" in refusal(zip_file(tmp_path / "x.pth", both, [data]))


def test_whole_models_are_refused_with_advice(torch, tmp_path):
    for zipped in (True, False):
        torch.save(torch.nn.Linear(2, 3), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        message = refusal(tmp_path / "x.pth")
        assert "whole model" in message and "save model.state_dict()" in message
    torch.save({"args": collections.Counter("ab")}, tmp_path / "x.pth")
    message = refusal(tmp_path / "x.pth")
    assert "'collections.Counter'" in message and "not executed" in message


def test_lazy_views_are_refused_rather_than_read_wrongly(torch, tmp_path):
    negated = torch.tensor([1 + 2j]).conj().imag
    assert negated.is_neg()
    torch.save({"w": negated}, tmp_path / "x.pth")
    refusal(tmp_path / "x.pth")
