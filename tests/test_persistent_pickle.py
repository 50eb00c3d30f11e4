"""Networks that were pickled whole: read as they are, and nothing in them executed."""

import os
import re

import numpy as np
import persistent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganstyle_jax.features.persistent_pickle import is_persistent, read_networks
from ganstyle_jax.io.files import UserError


@pytest.fixture(scope="module")
def network(torch):
    """A network with a network in it, as StyleGAN2-ADA's are: gains of NumPy's, buffers, a half and a missing bias."""

    @persistent.persistent
    class Layer(torch.nn.Module):
        def __init__(self, before, after, bias=True):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(after, before))
            self.bias = torch.nn.Parameter(torch.randn(after)) if bias else None
            self.weight_gain = 1 / np.sqrt(before)
            self.act_gain = np.float32(2)

    @persistent.persistent
    class Generator(torch.nn.Module):
        def __init__(self, z_dim, synthesis_kwargs=None):
            super().__init__()
            self.z_dim = z_dim
            self.first = Layer(z_dim, 3)
            self.second = Layer(3, 5, bias=False)
            self.none = None
            self.register_buffer("w_avg", torch.arange(4.0))
            self.register_buffer("narrow", torch.arange(6, dtype=torch.float16).reshape(2, 3).T)
            self.register_buffer("absent", None)

    torch.manual_seed(0)
    return Generator(7, synthesis_kwargs=persistent.EasyDict(channel_base=16, num_fp16_res=4))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_networks_are_read_as_they_were_pickled(network, tmp_path, protocol):
    tree = {"G": network, "D": None, "G_ema": network, "augment_pipe": None}
    tree["training_set_kwargs"] = persistent.EasyDict(path="x", use_labels=False)
    path = persistent.dump(tree, tmp_path / "snapshot.pkl", protocol)
    assert is_persistent(path)
    found = read_networks(path)
    assert list(found) == ["G", "G_ema"]
    for of in found.values():
        assert of.kind == "Generator"
        assert of.arguments == {"synthesis_kwargs": {"channel_base": 16, "num_fp16_res": 4}}
        expected = {name: value.detach().numpy() for name, value in network.state_dict().items()}
        assert set(of.arrays) == set(expected) and len(expected) == 5
        for name, value in expected.items():
            assert of.arrays[name].dtype == value.dtype
            np.testing.assert_array_equal(of.arrays[name], value)


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        read_networks(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


class Harm:
    """Would leave a file behind if it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_executed(network, tmp_path):
    trace = tmp_path / "executed"
    for tree in (
        {"G": Harm(trace)},
        {"G": network, "other": Harm(trace)},
        {"G": persistent.EasyDict(a=[Harm(trace)])},
    ):
        refused(persistent.dump(tree, tmp_path / "harm.pkl"), r"asks for the Python object .*system.*not executed")
    state = {"_parameters": {}, "_buffers": {}, "_modules": {"a": Harm(trace)}}
    meta = {"type": "class", "version": 6, "module_src": "", "class_name": "G", "state": state}
    refused(persistent.dump({"G": Call(persistent._reconstruct_persistent_obj, meta)}, tmp_path / "b.pkl"), "system")
    # The opcode that makes an object of any class, with a class that such files know and one that they do not.
    for name in (b"ctorch\nTensor\n", b"cdnnlib.util\nEasyDict\nX\x01\x00\x00\x00a\x85"):
        ends = b"\x81." if b"EasyDict" in name else b")\x81."
        (tmp_path / "new.pkl").write_bytes(b"\x80\x02" + name + ends)
        refused(tmp_path / "new.pkl", "object of a class.*not executed|damaged")
    assert not trace.exists()


class Call:
    """Is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def meta(**changes):
    return {"type": "class", "version": 6, "module_src": "", "class_name": "G", "state": {}} | changes


def test_what_is_not_known_is_refused_by_name(network, torch, tmp_path):
    def call(name, **changes):
        return persistent.dump({"G": Call(persistent._reconstruct_persistent_obj, meta(**changes))}, tmp_path / name)

    refused(call("version.pkl", version=7), "of version 7 of torch_utils.persistence; 6 is read")
    refused(call("class.pkl", class_name=3), "has no class")
    refused(call("state.pkl", state=[]), "has no state")
    refused(call("tensor.pkl", state={"_parameters": {"w": 3}}), "w is no tensor")
    refused(call("module.pkl", state={"_modules": {"w": 3}}), "w is no module")
    refused(call("dict.pkl", state={"_modules": 3}), "_modules of a G is no dictionary")
    refused(persistent.dump([network], tmp_path / "list.pkl"), "holds a list, where a dictionary of networks")
    refused(persistent.dump({"a": 1}, tmp_path / "none.pkl"), "holds no network")
    refused(tmp_path / "missing.pkl", "cannot read .*missing")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "cut off or damaged|holds")
    assert not is_persistent(tmp_path / "w.pth") and not is_persistent(tmp_path / "missing.pkl")
    (tmp_path / "empty.pkl").touch()
    refused(tmp_path / "empty.pkl", "cut off or damaged")
    assert not is_persistent(tmp_path / "empty.pkl")


def test_modules_that_lie_in_themselves_end(tmp_path):
    """By the memo a module can be put among its own modules, after it has been made."""

    def text(content):
        return b"X" + len(content).to_bytes(4, "little") + content

    modules = text(b"_modules") + b"}q\x08s"  # an item of the state, whose value is kept in the memo at 8
    items = (
        text(b"type") + text(b"class") + b"s" + text(b"version") + b"K\x06s" + text(b"class_name") + text(b"G") + b"s"
    )
    call = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    module = call + b"}" + items + text(b"state") + b"}" + modules + b"s" + b"\x85Rq\x0a"  # kept at 10
    (tmp_path / "loop.pkl").write_bytes(
        b"\x80\x02" + module + b"0" + b"h\x08" + text(b"a") + b"h\x0as0" + b"}" + text(b"G") + b"h\x0as."
    )
    refused(tmp_path / "loop.pkl", "modules in modules without end")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_sentence(network, tmp_path_factory, data):
    """Whatever bytes are changed or cut off: networks, or one UserError."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "sound.pkl"
    if not path.exists():
        persistent.dump({"G": network}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    (folder / "damaged.pkl").write_bytes(bytes(content[:cut]))
    try:
        read_networks(folder / "damaged.pkl")
    except UserError as error:
        assert re.search(r"damaged\.pkl", str(error))
