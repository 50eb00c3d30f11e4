"""Model files: what is written is read back, and what is none is refused in a sentence."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import small_translator
from safetensors import safe_open
from safetensors.numpy import save_file

from ganstyle_jax import contract
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import models

CFG = dcgan.Config(image_size=16, width=4, latent_dim=8, weights="last")
METHOD = contract.of(dcgan)


@pytest.fixture(scope="module")
def variables():
    """Of the generator's shapes, drawn without compiling what draws the method's own."""
    shapes = jax.eval_shape(lambda key: METHOD.generator(METHOD.init(key, CFG), CFG), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(np.float32), shapes)


@pytest.fixture
def file(variables, tmp_path):
    models.write(tmp_path / "small.safetensors", METHOD, CFG, variables)
    return tmp_path / "small.safetensors"


def changed(file: Path, **metadata: str | None) -> Path:
    """The same weights, with other things said of them; None: not said."""
    with safe_open(file, "numpy") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        said = dict(opened.metadata()) | metadata
    other = file.with_name("changed.safetensors")
    save_file(arrays, other, {name: text for name, text in said.items() if text is not None})
    return other


def test_what_is_written_is_read_back_bit_for_bit(file, variables):
    model = models.load(file)
    assert model.method is METHOD and model.cfg == CFG and model.title == "small"
    assert jax.tree.structure(model.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, model.variables, variables)
    z = METHOD.requests(jax.random.key(1), 3, CFG, {})
    expected = jax.jit(METHOD.sample, static_argnums=2)(variables, z, CFG)
    np.testing.assert_array_equal(model.draw(z), expected)


def test_numbers_without_axes_stay_such(variables, tmp_path):
    models.write(tmp_path / "a.safetensors", METHOD, CFG, {"a": np.array(3.0, np.float32), "b": np.array(2)})
    found = models.read(tmp_path / "a.safetensors").variables
    assert found["a"].shape == found["b"].shape == () and found["a"] == 3 and found["b"] == 2


def test_half_precision_takes_half_and_is_read_as_float32(file, variables, tmp_path):
    models.write(tmp_path / "half.safetensors", METHOD, CFG, variables, "float16", {"license": "CC0"})
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * file.stat().st_size
    model = models.read(tmp_path / "half.safetensors")
    assert model.metadata["license"] == "CC0"
    for found, given in zip(jax.tree.leaves(model.variables), jax.tree.leaves(variables), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.asarray(given).astype(np.float16).astype(np.float32))


def test_paths_of_the_machine_that_trained_stay_there():
    @dataclasses.dataclass(frozen=True)
    class Config:
        style: tuple[Path, ...] = (Path("/home/someone/a.jpg"), Path("b.jpg"))
        size: int = 3

    said = contract.to_json(models._without_places(Config()))
    assert said == {"style": ["a.jpg", "b.jpg"], "size": 3}
    assert contract.config_from_json(Config, said) == Config((Path("a.jpg"), Path("b.jpg")))


def test_flattened_and_nested_are_inverse():
    tree = {"params": {"a": {"kernel": np.ones(2)}, "b": np.zeros(1)}}
    flat = models.flattened(tree)
    assert list(flat) == ["params/a/kernel", "params/b"]
    assert models.nested(flat).keys() == tree.keys() and models.nested(flat)["params"]["b"] is tree["params"]["b"]
    with pytest.raises(ValueError, match="list at params"):
        models.flattened({"params": [np.ones(1)]})
    with pytest.raises(ValueError, match="without /"):
        models.flattened({"a/b": np.ones(1)})
    for bad in ({"a": np.ones(1), "a/b": np.ones(1)}, {"a/b": np.ones(1), "a": np.ones(1)}):
        with pytest.raises(ValueError, match="a"):
            models.nested(bad)


def test_what_cannot_be_written(variables, tmp_path):
    with pytest.raises(UserError, match=r"small_translator.py is a method of your own"):
        models.write(tmp_path / "a.safetensors", contract.of(small_translator), small_translator.Config(), variables)
    with pytest.raises(ValueError, match=r"a holds values that float16 cannot, up to 1e\+05"):
        models.write(tmp_path / "a.safetensors", METHOD, CFG, {"a": np.array([1e5])}, "float16")
    with pytest.raises(ValueError, match="that float32 cannot"):
        models.write(tmp_path / "a.safetensors", METHOD, CFG, {"a": np.array([np.nan])})
    assert not list(tmp_path.iterdir())


def test_what_is_no_model(file, tmp_path):
    def refused(path, match):
        with pytest.raises(UserError, match=match) as error:
            models.load(path)
        assert "\n" not in str(error.value)

    refused(tmp_path / "none.safetensors", "there is no run folder or model .*none.safetensors: .*come with")
    refused(changed(file, version="2"), r"written by ganstyle_jax .* as a model of version '2', and version 1 is read")
    refused(changed(file, method="vae"), "of the method 'vae', and .*dcgan.* are known here")
    refused(changed(file, method=None), "does not say of which method")
    with safe_open(file, "numpy") as opened:
        config = json.loads(opened.metadata()["config"])
    refused(changed(file, config=json.dumps(config | {"depth": 3})), "another version .* no depth")
    refused(changed(file, config=json.dumps(config | {"image_size": 17})), "image_size must be")
    refused(changed(file, config="[1"), "another version")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-9])
    refused(tmp_path / "cut.safetensors", "not a sound .safetensors file")
    with pytest.raises(UserError, match="--step is of a run folder"):
        models.load(file, 3)


def test_models_that_ship_are_found_by_name(file, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "SHIPPED", file.parent)
    monkeypatch.chdir(Path(__file__).parent)
    assert models.shipped() == {"small": file}
    assert models.load("small").cfg == CFG
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()  # a folder of something else does not hide it, a run folder does
    assert models.place_of("small") == file
    (tmp_path / "small" / "run.json").touch()
    assert models.place_of("small") == Path("small")
    with pytest.raises(UserError, match="the models that come with the package are small"):
        models.load("large")


def test_models_that_ship_are_small_and_sound():
    for path in models.shipped().values():
        assert path.stat().st_size <= 2 << 20
        assert models.read(path).method.has("requests_of")
