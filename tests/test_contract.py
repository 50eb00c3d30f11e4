"""What a method is, whatever it is: configs as JSON, requests, pictures by title, errors in words."""

import dataclasses
import re
import types
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import small_stylizer
import small_translator
import small_wgan
from hypothesis import given
from hypothesis import strategies as st

from ganstyle_jax import builtin, contract
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io import sheet
from ganstyle_jax.io.files import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Every:
    """A field of every kind that a config may have."""

    number: int = 1
    real: float = 0.1
    text: str = "x"
    flag: bool = False
    choice: Literal["a", "b"] = "a"
    maybe: int | None = None
    path: Path = Path("p")
    perhaps: Path | None = None
    paths: tuple[Path, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    either: tuple[int, ...] | None = None
    noted: Annotated[float, "a note"] = 1.0
    part: Part = Part()
    other: Part | None = None
    parts: tuple[Part, ...] = ()


FINITE = st.floats(allow_nan=False, allow_infinity=False)
PATHS = st.text("abc/.", min_size=1).map(Path)
PARTS = st.builds(Part, FINITE, st.lists(st.text()).map(tuple))


@given(
    st.builds(
        Every,
        number=st.integers(),
        real=FINITE,
        text=st.text(),
        flag=st.booleans(),
        choice=st.sampled_from("ab"),
        maybe=st.none() | st.integers(),
        path=PATHS,
        perhaps=st.none() | PATHS,
        paths=st.lists(PATHS).map(tuple),
        pair=st.tuples(st.integers(), FINITE),
        either=st.none() | st.lists(st.integers()).map(tuple),
        noted=FINITE,
        part=PARTS,
        other=st.none() | PARTS,
        parts=st.lists(PARTS).map(tuple),
    )
)
def test_every_kind_of_field_survives_json(cfg):
    import json

    text = json.dumps(contract.to_json(cfg))
    again = contract.config_from_json(Every, json.loads(text))
    assert again == cfg and hash(again) == hash(cfg)
    assert [type(getattr(again, f.name)) for f in dataclasses.fields(cfg)] == [
        type(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)
    ]


def test_a_config_of_an_earlier_version_gets_the_defaults_and_says_what_it_lacks():
    values = contract.to_json(dcgan.Config(width=8))
    del values["r1"], values["augment"]
    cfg, lacking = contract.complete(dcgan.Config, values)
    assert cfg == dcgan.Config(width=8) and lacking == ["r1", "augment"]
    with pytest.raises(UserError, match="it has no depth"):
        contract.complete(dcgan.Config, values | {"depth": 3})
    with pytest.raises(UserError, match="image_size must be a power of two"):
        contract.complete(dcgan.Config, values | {"image_size": 17})


def test_a_config_that_cannot_be_kept_is_named():
    with pytest.raises(TypeError, match=r"numbers, texts, paths, tuples and dataclasses of them, got .*object"):
        contract.to_json(object())


def test_where_there_are_no_constants_there_is_no_argument_for_them():
    assert contract.of(small_wgan).constants(small_wgan.Config()) == ()
    assert set(contract.of(small_stylizer).constants(small_stylizer.Config())) == {"encoder"}


def test_names():
    assert contract.of(dcgan).name == "dcgan" and contract.of(dcgan).file is None
    assert contract.of(small_wgan).name == "small_wgan.py"
    assert contract.of(small_wgan).file == Path(small_wgan.__file__)


def test_which_pictures_are_judged():
    assert contract.of(small_translator).judged(small_translator.Config()) == ("to b", "b")
    assert contract.of(dcgan).judged(dcgan.Config()) == (None, "real")
    silent = types.ModuleType("silent")
    silent.__file__ = "silent.py"
    vars(silent).update({k: v for k, v in vars(small_translator).items() if k != "judged" and not k.startswith("__")})
    with pytest.raises(UserError, match=r"has the sources a, b and does not say .*judged\(cfg\)"):
        contract.of(silent).judged(small_translator.Config())


def earlier_wgan(file: str = "old.py") -> types.ModuleType:
    """`small_wgan` as it was written for version 0.1.0."""
    old = types.ModuleType("old")
    kept = ("Config", "init", "generator", "sample")
    vars(old).update({name: getattr(small_wgan, name) for name in kept}, __file__=file)
    old.latents = lambda key, n, cfg: small_wgan.requests(key, n, cfg)
    old.batches_per_step = lambda cfg: cfg.critic_steps
    old.train_step = lambda state, batch, key, cfg, axis_name=None: small_wgan.train_step(
        state, {"real": batch}, key, cfg, axis_name
    )
    return old


def test_a_method_of_version_0_1_0_goes_on_bit_for_bit(tmp_path):
    from ganstyle_jax.loop import train
    from ganstyle_jax.loop.checkpoints import digest

    cfg = small_wgan.Config(latent_dim=4, width=8)
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "noise.npz", images=images)
    loop = {"steps": 3, "batch_size": 4, "devices": 1, "progress": "none"}
    (tmp_path / "old.py").touch()
    states = [
        train.run(module, cfg, str(tmp_path / "noise.npz"), train.Loop(run_dir=tmp_path / name, **loop))
        for name, module in (("old", earlier_wgan(str(tmp_path / "old.py"))), ("new", small_wgan))
    ]
    assert digest(states[0]) == digest(states[1])


def test_a_method_that_lacks_functions_is_told_which():
    old = earlier_wgan()
    del old.sample
    with pytest.raises(UserError, match=r"old.py lacks sources, requests, sample: a method that is trained has"):
        contract.of(old)


@pytest.mark.parametrize("name", ["gan", "dcgan.txt", "gatys"])
def test_a_name_of_no_method(name):
    with pytest.raises(UserError, match=re.escape(f"method must be {builtin.OR_FILE}, got")):
        contract.find(name)


def test_latents_of_requests():
    z = np.zeros((3, 4), np.float32)
    assert contract.latents_of(z) is not None and contract.latents_of({"latents": z, "labels": z[:, 0]}) is not None
    assert contract.latents_of({"a": np.zeros((3, 4, 4, 3), np.float32)}) is None
    assert (
        contract.latents_of(np.zeros((3, 4, 4, 3), np.float32)) is None and contract.latents_of(z.astype(int)) is None
    )
    walk = contract.with_latents({"latents": z, "labels": np.array([7, 8, 9])}, np.ones((5, 4)))
    assert walk["labels"].tolist() == [7] * 5 and walk["latents"].shape == (5, 4)


def test_in_parts_fills_up_and_cuts():
    sizes = []

    def draw(part):
        sizes.append(len(part["x"]))
        return {"double": 2 * part["x"]}

    parts = list(contract.in_parts(draw, {"x": np.arange(10.0)}, 4))
    assert (
        sizes == [4, 4, 4]
        and np.concatenate([part["double"] for part in parts]).tolist() == (2 * np.arange(10.0)).tolist()
    )


def test_examples_are_read_when_they_are_looked_up():
    read = []
    examples = contract.Examples({"a": lambda: read.append("a") or {"image": 1}, "b": lambda: read.append("b")})
    assert list(examples) == ["a", "b"] and len(examples) == 2 and read == []
    assert examples["a"]["image"] == 1 and examples["a"] and read == ["a"]


def test_a_sheet_of_several_titles():
    """Request by request, with the titles above; grey beside colour, and other sizes, come to one."""
    n, grey = 4, np.linspace(-1, 1, 4).reshape(4, 1, 1, 1) * np.ones((4, 16, 16, 1))
    red = np.broadcast_to(np.array([1.0, -1.0, -1.0]), (n, 8, 8, 3))
    made = sheet.of({"input": grey, "output": red})
    rows, columns, side = 4, 2, 64 + 2  # small pictures are shown larger, so that titles can be read
    assert made.dtype == np.uint8 and made.shape == (20 + rows * side - 2, columns * side - 2, 3)
    first, second = made[20 + 8, 8], made[20 + 8, side + 8]
    assert first.tolist() == [0, 0, 0] and second.tolist() == [255, 0, 0]
    assert made[:20].min() < 100 < made[:20].max()  # letters on white
    assert sheet.of(grey).shape == (34, 34, 1)  # without titles as ever


def changed(module, **functions) -> types.ModuleType:
    new = types.ModuleType("changed")
    vars(new).update(
        {k: v for k, v in vars(module).items() if not k.startswith("__")} | functions, __file__="changed.py"
    )
    return new


@pytest.mark.parametrize(
    "judged, message",
    [
        (("outpt", "b"), r"judged\(cfg\) of changed.py names the title 'outpt': sample gives a, to b, back"),
        (("to b", "c"), r"judged\(cfg\) of changed.py names the source 'c': it has a, b"),
    ],
)
def test_what_is_judged_is_there(judged, message):
    method = contract.of(changed(small_translator, judged=lambda cfg: judged))
    with pytest.raises(UserError, match=message):
        method.check_judged(small_translator.Config(width=2))
    contract.of(small_translator).check_judged(small_translator.Config(width=2))
    cfg = small_stylizer.Config()
    contract.of(small_stylizer).check_judged(cfg, small_stylizer.constants(cfg))
    with pytest.raises(UserError, match="titles a, to b, and none with 'x'"):
        contract.column({"a": 1, "to b": 2}, "x")


def test_a_config_must_be_frozen():
    @dataclasses.dataclass
    class Config:
        image_size: int = 16

    with pytest.raises(UserError, match=r"Config of changed.py must be a frozen dataclass: write @dataclasses"):
        contract.of(changed(small_wgan, Config=Config))
