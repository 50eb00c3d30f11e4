"""run.json and what it protects; trained runs read back; records of what was measured."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax import contract, data
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import runs
from ganstyle_jax.loop.checkpoints import Checkpoints
from ganstyle_jax.loop.identity import identity_of

METHOD = """
import dataclasses
import jax, jax.numpy as jnp
from ganstyle_jax.data import Wanted
from helper import scale

@dataclasses.dataclass(frozen=True)
class Config:
    image_size: int = 8
    dtype: str = "float32"
    sizes: tuple[int, ...] = (1, 2)
    rate: float = 0.1

def sources(cfg): return {"real": Wanted(cfg.image_size, 1)}
def init(key, cfg):
    weights = scale(jax.random.normal(key, (4, 64), cfg.dtype))
    return {"weights": weights, "opt_state": jnp.zeros(3), "step": jnp.int32(0)}
def train_step(state, batch, key, cfg, axis_name=None): return state, {}
def requests(key, n, cfg, examples): return jax.random.normal(key, (n, 4), cfg.dtype)
def generator(state, cfg): return state["weights"]
def sample(variables, requests, cfg): return jnp.tanh(requests @ variables).reshape(-1, 8, 8, 1)
"""


@dataclasses.dataclass(frozen=True)
class Loop:
    run_dir: Path | None = None
    batch_size: int = 4
    seed: int = 0


def method_in(folder: Path, text: str = METHOD, helper: str = "scale = lambda x: x * 2", name: str = "my_gan.py"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "helper.py").write_text(helper)
    (folder / name).write_text(text)
    return contract.find(folder / name)


def trained(run_dir: Path, method, cfg=None, loop=Loop(), spec: str = "glyphs:grey", state=None):
    """A run folder as training leaves it; its description."""
    cfg = cfg or method.config()
    found = {"real": data.open_source(spec, 8, 1)}
    description = runs.describe(method, cfg, spec, loop, found)
    runs.write(run_dir, method, description)
    with jax.enable_x64(getattr(cfg, "dtype", "") == "float64"), Checkpoints(run_dir) as checkpoints:
        checkpoints.save(3, state or method.init(jax.random.key(1), cfg))
    return description


def arrays(path: Path, seed: int, count: int = 6, **more: np.ndarray) -> str:
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)
    np.savez(path, x_train=images, **more)
    return f"{path}/x_train"


# ---------------------------------------------------------------------------------------------------------------------
# run.json


def test_a_run_keeps_its_method_with_what_it_imports_and_loads_without_the_original(tmp_path):
    run_dir = tmp_path / "run"
    method = method_in(tmp_path / "mine")
    description = trained(run_dir, method, method.config(sizes=(3, 4, 5)))
    expected = runs.LoadedRun(method, method.config(), method.init(jax.random.key(1), method.config()), 3)
    shutil.rmtree(tmp_path / "mine")
    assert {path.name for path in (run_dir / "method").iterdir()} == {"my_gan.py", "helper.py"}
    assert runs.read(run_dir) == json.loads(json.dumps(description))
    assert set(description["method_files"]) == {"my_gan.py", "helper.py"} and description["method"] == "my_gan.py"
    loaded = runs.load(run_dir)
    assert loaded.cfg.sizes == (3, 4, 5) and loaded.step == 3 and loaded.data == "glyphs:grey"
    images = loaded.sample(jax.random.key(0), 5, batch_size=2)
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.float32
    np.testing.assert_array_equal(images, expected.sample(jax.random.key(0), 5, batch_size=2))
    np.testing.assert_array_equal(images[:3], loaded.sample(jax.random.key(0), 3, batch_size=2))


def test_two_runs_of_methods_with_the_same_names(tmp_path):
    one = method_in(tmp_path / "a", helper="scale = lambda x: x * 0")
    two = method_in(tmp_path / "b", helper="scale = lambda x: x * 0 + 1")
    for name, method in (("one", one), ("two", two)):
        trained(tmp_path / name, method)
    loaded = [runs.load(tmp_path / name) for name in ("one", "two")]
    key, cfg = jax.random.key(0), loaded[0].cfg
    assert [float(run.method.init(key, run.cfg)["weights"][0, 0]) for run in loaded] == [0, 1]
    assert loaded[0].cfg == cfg and runs.load(tmp_path / "one").method == loaded[0].method


def test_a_folder_of_an_earlier_version_loads_and_resumes(tmp_path):
    """method.py beside run.json, data a text, no sums and no identity."""
    text = METHOD.replace("from helper import scale", "scale = lambda x: x")
    method = method_in(tmp_path / "mine", text)
    description = trained(tmp_path / "run", method)
    shutil.rmtree(tmp_path / "run" / "method")
    shutil.copy(tmp_path / "mine" / "my_gan.py", tmp_path / "run" / "method.py")
    old = {k: v for k, v in description.items() if k not in ("method_files", "data_identity")} | {"method": "method.py"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(old))
    assert runs.load(tmp_path / "run").sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)
    old = runs.previous(tmp_path / "run", "auto")
    assert runs.check_same(tmp_path / "run", old, description, method) == []
    other = method_in(tmp_path / "other", text + "\n# another")
    changed = runs.describe(other, other.config(), "glyphs:grey", Loop())
    with pytest.raises(UserError, match=r"the method's file my_gan\.py is another one than before"):
        runs.check_same(tmp_path / "run", old, changed, other)
    runs.write(tmp_path / "run", method, description)
    assert runs.load(tmp_path / "run").method.name == "my_gan.py"


def test_a_config_that_has_gained_a_field_and_one_that_has_lost_it(tmp_path, capsys):
    method = method_in(tmp_path / "mine")
    trained(tmp_path / "run", method)
    old = json.loads((tmp_path / "run" / "run.json").read_text())
    del old["config"]["rate"], old["config"]["sizes"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(old))
    loaded = runs.load(tmp_path / "run")
    assert dataclasses.asdict(loaded.cfg) == dataclasses.asdict(method.config())
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run'} is of a version that did not have sizes (1, 2), rate 0.1: as by default\n" in said
    new = runs.describe(method, method.config(), "glyphs:grey", Loop())
    assert runs.check_same(tmp_path / "run", old, new, method) == []
    assert capsys.readouterr().err.count("\n") == 1
    new = runs.describe(method, method.config(rate=0.2), "glyphs:grey", Loop())
    with pytest.raises(UserError, match=r"rate was 0\.1 and is 0\.2"):
        runs.check_same(tmp_path / "run", old, new, method)
    (tmp_path / "run" / "run.json").write_text(json.dumps(old | {"config": {"width": 3}}))
    message = r"run\.json is of another version of my_gan\.py: .*it has no width"
    with pytest.raises(UserError, match=message):
        runs.load(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        runs.check_same(tmp_path / "run", runs.read(tmp_path / "run"), new, method)


def test_differences_in_words(tmp_path):
    method = method_in(tmp_path / "mine")
    cfg, nan = method.config(), method.config(rate=float("nan"))
    old = runs.describe(method, cfg, "glyphs", Loop())
    assert runs.differences(old, old) == []
    assert runs.differences(*[runs.describe(method, nan, "glyphs", Loop())] * 2) == []
    elsewhere = runs.describe(method_in(tmp_path / "moved"), cfg, "glyphs", Loop(run_dir=Path("x")))
    assert runs.differences(old, elsewhere) == []
    changed = runs.describe(method, dataclasses.replace(cfg, sizes=(1,)), "glyphs:grey", Loop(batch_size=8, seed=2))
    assert runs.differences(old, changed) == [
        "data was 'glyphs' and is 'glyphs:grey'",
        "sizes was [1, 2] and is [1]",
        "batch_size was 4 and is 8",
        "seed was 0 and is 2",
    ]
    others = {
        "helper.py, which the method imports, is another file than before": {"helper": "scale = abs"},
        "the method's file my_gan.py is another one than before": {"text": METHOD + "\n"},
        "method was 'my_gan.py' and is 'your_gan.py', another file": {"text": METHOD + "#", "name": "your_gan.py"},
    }
    for words, other in others.items():
        other = method_in(tmp_path / f"{len(words)}", **other)
        assert runs.differences(old, runs.describe(other, cfg, "glyphs", Loop())) == [words]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "second.py").touch()
    other = method_in(tmp_path / "d", helper="import second\nscale = lambda x: x * 2")
    found = runs.differences(old, runs.describe(other, cfg, "glyphs", Loop()))
    assert "second.py, which the method imports, is new" in found and len(found) == 2
    renamed = runs.describe(method_in(tmp_path / "e", name="renamed.py"), cfg, "glyphs", Loop())
    assert runs.differences(old, renamed) == []  # the same contents
    built_in = old | {"method": "dcgan"}
    del built_in["method_files"]
    assert "method was 'dcgan' and is 'my_gan.py'" in runs.differences(built_in, old)[0]
    assert runs.differences(old | {"loop": {}}, old) == []  # of a version that did not note it


def test_changes_are_refused_or_noted(tmp_path):
    method = method_in(tmp_path / "mine")
    trained(tmp_path / "run", method)
    other = method_in(tmp_path / "other", helper="scale = lambda x: x")
    new = runs.describe(other, other.config(rate=0.5), "glyphs:grey", Loop(batch_size=8))
    old = runs.previous(tmp_path / "run", "required")
    message = r"holds another run: helper\.py, .*; rate was 0\.1 and is 0\.5; batch_size was 4"
    with pytest.raises(UserError, match=message) as caught:
        runs.check_same(tmp_path / "run", old, new, other)
    assert "--allow-changes" in str(caught.value)
    changes = runs.check_same(tmp_path / "run", old, new, other, allow_changes=True)
    runs.write(tmp_path / "run", other, new)
    runs.record_changes(tmp_path / "run", 3, changes)
    assert runs.read(tmp_path / "run")["changes"] == [{"step": 3, "what": changes}] and len(changes) == 3
    runs.write(tmp_path / "run", other, new)  # as a resumed run does
    runs.record_changes(tmp_path / "run", 5, ["seed was 1 and is 2"])
    runs.record_changes(tmp_path / "run", 6, [])
    assert [change["step"] for change in runs.read(tmp_path / "run")["changes"]] == [3, 5]
    assert runs.load(tmp_path / "run").cfg.rate == 0.5
    kept = (tmp_path / "run" / "method" / "helper.py").read_text()
    assert kept == "scale = lambda x: x"


def test_files_that_a_method_no_longer_imports_go_and_others_stay(tmp_path):
    method = method_in(tmp_path / "mine")
    trained(tmp_path / "run", method)
    (tmp_path / "run" / "method" / "notes.py").touch()
    alone = method_in(tmp_path / "alone", METHOD.replace("from helper import scale", "scale = abs"))
    runs.write(tmp_path / "run", alone, runs.describe(alone, alone.config(), "glyphs", Loop()))
    assert {path.name for path in (tmp_path / "run" / "method").iterdir()} == {"my_gan.py", "notes.py"}


def test_a_file_changed_while_the_run_begins(tmp_path):
    method = method_in(tmp_path / "mine")
    description = runs.describe(method, method.config(), "glyphs", Loop())
    (tmp_path / "mine" / "helper.py").write_text("scale = abs")
    with pytest.raises(UserError, match=r"helper\.py was changed while the run began"):
        runs.write(tmp_path / "run", method, description)


def test_a_copy_that_was_edited_is_said(tmp_path, capsys):
    trained(tmp_path / "run", method_in(tmp_path / "mine"))
    (tmp_path / "run" / "method" / "helper.py").write_text("scale = lambda x: x")
    runs.load(tmp_path / "run")
    assert "helper.py changed since the run was trained" in capsys.readouterr().err


def test_run_json_missing_beside_checkpoints_is_no_new_run(tmp_path):
    assert runs.previous(tmp_path / "new", "auto") is None and runs.previous(tmp_path, "never") is None
    with pytest.raises(UserError, match="holds no run to resume"):
        runs.previous(tmp_path / "new", "required")
    trained(tmp_path / "run", method_in(tmp_path / "mine"))
    with pytest.raises(UserError, match="already holds a run"):
        runs.previous(tmp_path / "run", "never")
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").touch()
    for resume in ("never", "auto", "required"):
        with pytest.raises(UserError, match=r"holds checkpoints \(3\) and metrics\.jsonl, but no run\.json"):
            runs.previous(tmp_path / "run", resume)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "[" * 100_000, '"\udcff"', '{"method": 3, "config": {}, "data": "x", "loop": {}}',
        '{"method": "dcgan", "config": [], "data": "x", "loop": {}}',
        '{"method": "dcgan", "config": {}, "data": {"a": 3}, "loop": {}}',
        '{"method": "../evil.py", "config": {}, "data": "x", "loop": {}}',
        '{"method": "dcgan", "config": {}, "data": "x", "loop": {}, "method_files": []}',
        '{"method": "dcgan", "config": {"width": []}, "data": "x", "loop": {}}',
        '{"method": "dcgan", "config": {"width": "x"}, "data": "x", "loop": {}}',
        '{"method": "stylegan9", "config": {}, "data": "x", "loop": {}}',
        '{"method": "lost.py", "config": {}, "data": "x", "loop": {}}',
        '{"method": "", "config": {}, "data": "x", "loop": {}}',
    ],
)  # fmt: skip
def test_a_run_json_that_makes_no_sense_is_one_sentence(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        runs.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_picture_run_has_no_network(tmp_path):
    (tmp_path / "run.json").write_text('{"method": "gatys", "config": {}, "data": "x", "loop": {}}')
    with pytest.raises(UserError, match=r"holds a picture that was optimised .*and no network to draw from"):
        runs.load(tmp_path)


def test_a_method_made_in_a_notebook(tmp_path):
    module = ModuleType("my_method")
    sys.modules["my_method"] = module
    exec(METHOD.replace("from helper import scale", "scale = abs"), module.__dict__)
    try:
        method = contract.of(module)
        description = trained(tmp_path, method)
        assert "method_files" not in description and description["method"] == "my_method"
        assert runs.check_same(tmp_path, runs.read(tmp_path), description, method) == []
        with pytest.raises(UserError, match="was made by 'my_method', which this version does not have"):
            runs.load(tmp_path)
    finally:
        del sys.modules["my_method"]


# ---------------------------------------------------------------------------------------------------------------------
# Which data


def described(spec: str) -> dict:
    identity = identity_of(spec, data.open_source(spec, 8, 1))
    return {"method": "x", "config": {}, "loop": {}, "data": spec, "data_identity": {"real": identity}}


def changes(old: str, new: str) -> list[str]:
    return runs.differences(described(old), described(new))


def test_another_archive_with_a_place_of_the_same_name(tmp_path):
    a, b = arrays(tmp_path / "a.npz", 1), arrays(tmp_path / "b.npz", 2)
    assert changes(a, b) == [f"data was {a!r} (6 pictures) and is {b!r} (6 pictures)"]
    assert changes(a, a) == []
    (tmp_path / "there").mkdir()
    shutil.copy(tmp_path / "a.npz", tmp_path / "there" / "c.npz")
    assert changes(a, str(tmp_path / "there" / "c.npz" / "x_train")) == []  # moved, and renamed
    before = described(a)
    arrays(tmp_path / "a.npz", 3)
    assert runs.differences(before, described(a)) == [
        f"data was {a!r} (6 pictures) and is {a!r} (6 pictures), with other contents"
    ]
    two = arrays(tmp_path / "two.npz", 1, x_test=np.zeros((6, 8, 8), np.uint8)).replace("x_train", "")
    assert changes(f"{two}x_train", f"{two}x_test") != []


def test_folders_are_told_apart_by_names_and_sizes_and_not_by_times_or_places(tmp_path):
    from PIL import Image

    for name, count in (("a", 5), ("b", 5), ("c", 6)):
        for i in range(count):
            (tmp_path / name / "x").mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(i).integers(0, 256, (9 + (name == "b"), 9), np.uint8)
            Image.fromarray(noise).save(tmp_path / name / "x" / f"{i}.png")
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert changes(a, b) == [f"data was {a!r} (5 pictures) and is {b!r} (5 pictures)"]
    assert changes(a, c) == [f"data was {a!r} (5 pictures) and is {c!r} (6 pictures)"]
    shutil.copytree(a, tmp_path / "moved")
    (tmp_path / "moved" / "README.txt").write_text("photographs")
    (tmp_path / "moved" / ".DS_Store").touch()
    (tmp_path / "moved" / "x" / "up").symlink_to(tmp_path / "moved", target_is_directory=True)
    for path in (tmp_path / "moved" / "x").iterdir():
        os.utime(path, (1, 1))
    before = identity_of(a, data.open_source(a, 8, 1))
    assert identity_of(str(tmp_path / "moved"), data.open_source(a, 8, 1)) == before


def test_sets_with_names_arrays_and_several_sources(tmp_path):
    assert changes("glyphs", "glyphs") == [] and changes("glyphs", "glyphs:digits") != []
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)

    def source(images):
        return data.Source("array", (8, 8, 1), np.dtype(np.uint8), len(images), None, lambda i: {"image": images[i]})

    same, other = identity_of("array", source(images)), identity_of("array", source(images[::-1]))
    assert same == identity_of("array", source(images.copy())) and same != other
    assert json.loads(json.dumps(same)) == same
    base = {"method": "x", "config": {}, "loop": {}}
    a = base | {"data": {"x": "horses", "y": "zebras"}}
    assert runs.differences(a, a) == []
    b = base | {"data": {"x": "horses", "y": "cows"}}
    assert runs.differences(a, b) == ["data y was 'zebras' and is 'cows'"]
    assert runs.differences(a, base | {"data": {"x": "horses"}}) != []
    assert runs.differences(a, base | {"data": "horses"}) != []
    with_identity = base | {"data": "/there/horses", "data_identity": {"x": same}}
    assert runs.differences(base | {"data": "horses"}, with_identity) == []  # an earlier version noted the name alone
    assert runs.differences(base | {"data": "horses", "data_identity": {"x": 3}}, with_identity) == []


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def test_float64_is_on_only_while_a_run_draws(tmp_path):
    method = method_in(tmp_path / "mine")
    trained(tmp_path / "run", method, method.config(dtype="float64"))
    loaded = runs.load(tmp_path / "run")
    assert loaded.x64 and loaded.state["weights"].dtype == jnp.float64 and not jax.config.jax_enable_x64
    requests = loaded.requests(jax.random.key(0), 3)
    assert requests.dtype == np.float64
    drawn = loaded.draw(requests)
    assert drawn.dtype == np.float32 and not jax.config.jax_enable_x64
    expected = np.tanh(requests @ np.asarray(loaded.state["weights"])).reshape(3, 8, 8, 1)
    np.testing.assert_allclose(drawn, expected, atol=1e-7)  # float32 computation differs by up to 1e-6
    fresh = {"weights": jnp.zeros((4, 64)), "opt_state": jnp.ones(3), "step": jnp.int32(0)}
    taken = runs.with_weights_of(tmp_path / "run", method.config(), fresh)
    assert taken["weights"].dtype == jnp.float32 and not jax.config.jax_enable_x64
    np.testing.assert_array_equal(taken["weights"], np.asarray(loaded.state["weights"]).astype(np.float32))
    np.testing.assert_array_equal(taken["opt_state"], np.ones(3))


def test_weights_of_a_run_with_another_optimizer(tmp_path):
    method = method_in(tmp_path / "mine")
    trained(tmp_path / "run", method)
    weights = runs.load(tmp_path / "run").state["weights"]
    fresh = {"weights": jnp.zeros((4, 64)), "opt_state": (jnp.ones(7), {"m": jnp.ones(2)}), "step": jnp.int32(0)}
    taken = runs.with_weights_of(tmp_path / "run", method.config(), fresh)
    np.testing.assert_array_equal(taken["weights"], weights)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, taken["opt_state"], fresh["opt_state"]))
    with pytest.raises(UserError, match=r"\['weights'\] is \(4, 64\) there and \(5, 64\) here"):
        runs.with_weights_of(tmp_path / "run", method.config(), fresh | {"weights": jnp.zeros((5, 64))})
    with pytest.raises(UserError, match=r"\['more'\] is missing there and \(2,\) here"):
        runs.with_weights_of(tmp_path / "run", method.config(), fresh | {"more": jnp.zeros(2)})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pictures_that_are_not_finite_are_one_sentence(tmp_path, bad):
    method = method_in(tmp_path / "mine", METHOD.replace("jnp.tanh", ""))
    state = method.init(jax.random.key(0), method.config())
    trained(tmp_path / "run", method, state=state | {"weights": state["weights"].at[0, 0].set(bad)})
    with pytest.raises(UserError, match=r"what step 3 draws is not finite \(NaN or infinity\)") as caught:
        runs.load(tmp_path / "run").sample(jax.random.key(0), 2)
    assert "\n" not in str(caught.value)


def test_examples_are_read_on_demand(tmp_path):
    spec = arrays(tmp_path / "a.npz", 1)
    trained(tmp_path / "run", method_in(tmp_path / "mine"), spec=spec)
    loaded = runs.load(tmp_path / "run")
    examples = loaded.examples(4, seed=5)
    assert list(examples) == ["real"] and len(examples) == 1
    images = examples["real"]["image"]
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.float32 and -1 <= images.min() < images.max() <= 1
    order = data.Batches(data.open_source(spec, 8, 1), 4, 5).indices(0)
    expected = np.load(tmp_path / "a.npz")["x_train"][order]
    np.testing.assert_allclose(images[..., 0], expected / 127.5 - 1, atol=1e-6)
    (tmp_path / "a.npz").unlink()
    assert loaded.sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)  # which needs none of them
    with pytest.raises(UserError, match="No file or folder"):
        loaded.examples(4)["real"]


def test_several_columns_constants_and_the_judged_one(tmp_path):
    text = METHOD.replace("from helper import scale", "scale = abs")
    for name in ("init(key, cfg", "generator(state, cfg"):
        text = text.replace(f"def {name})", f"def {name}, constants)")
    text = text.replace("def sources(cfg): return {", 'def sources(cfg): return {"other": Wanted(8, 1), ')
    text = text.replace('return state["weights"]', 'return state["weights"] * 0 + constants')
    text += "\ndef constants(cfg): return jnp.float32(0.5)\ndef judged(cfg): return 'ones', 'real'\n"
    text += "plain = sample\ndef sample(v, r, cfg): return {'ones': plain(v, r, cfg), 'twos': plain(v, r, cfg) * 2}\n"
    method = method_in(tmp_path / "mine", text)
    constants = method.constants(method.config())
    state = method.init(jax.random.key(0), method.config(), constants)
    given = {"real": "glyphs:grey", "other": "glyphs:grey"}
    loaded = runs.LoadedRun(method, method.config(), state, 1, constants, given)
    requests = loaded.requests(jax.random.key(0), 3)
    drawn = loaded.draw(requests, batch_size=2)
    assert list(drawn) == ["ones", "twos"] and loaded.decode(requests)["ones"].shape == (3, 8, 8, 1)
    expected = np.tanh(requests.sum(1) * 0.5)
    np.testing.assert_allclose(loaded.pictures(drawn)[:, 0, 0, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(loaded.sample(jax.random.key(0), 3, 2), drawn["ones"])
    assert list(loaded.examples(2)) == ["other", "real"] and loaded.examples(2)["other"]["image"].shape == (2, 8, 8, 1)


def test_settings_may_be_replaced(tmp_path):
    trained(tmp_path / "run", method_in(tmp_path / "mine"))
    assert runs.load(tmp_path / "run", rate=3.0).cfg.rate == 3.0
    with pytest.raises(UserError, match=r"a my_gan\.py run has no setting wings"):
        runs.load(tmp_path / "run", wings=2)


# ---------------------------------------------------------------------------------------------------------------------
# Records


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    good = {"step": 3, "metrics": {"fid": 2.0, "list": [1], "name": "x", "yes": True}, "protocol": {"a": {"b": 1}}}
    bad = ["3", "[1]", "null", '"x"', "{", "[" * 100_000, '{"step": "x", "metrics": {}, "protocol": {}}']
    bad += ['{"step": 1, "metrics": [], "protocol": {}}', '{"step": 1, "metrics": {}, "protocol": 3}', "{}"]
    (tmp_path / "evaluations.jsonl").write_text("\n".join([*bad, json.dumps(good), '{"step": 4, "met']))
    assert runs.evaluations(tmp_path) == [good]
    assert runs.numbers_of(good) == {"fid": 2.0} and runs.numbers_of({"metrics": 3}) == {} == runs.numbers_of({})
    assert runs.protocol_of(good) == {"a.b": 1} and runs.protocol_of({"protocol": 3}) == {}
    assert runs.best_step(tmp_path) is None
    (tmp_path / "evaluations.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="cannot be read"):
        runs.evaluations(tmp_path)


def test_the_best_is_one_of_those_measured_as_the_newest(tmp_path):
    def record(step, score, count=100, metric="fid", **more):
        return {"step": step, "score": score, "metrics": {metric: score}, "protocol": {"count": count}, **more}

    def best(*records):
        (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return runs.best_step(tmp_path)

    assert best(record(1, 5.0), record(2, 3.0), record(3, 4.0)) == 2
    assert best(record(1, 0.5, metric="kid"), record(2, 30.0), record(3, 40.0)) == 2
    assert best(record(1, 0.5, count=7), record(2, 30.0), record(3, 40.0)) == 2
    assert best(record(1, 0.5, score_of="recall"), record(2, 30.0, score_of="fid")) == 2
    assert best(record(1, 3.0), record(2, float("nan"))) == 1
    assert best(record(1, 3.0), record(2, 2.0), record(2, 4.0)) == 1  # the newest of a step
    assert best(record(1, "x"), record(None, 1.0)) is None and best() is None


def test_a_run_that_a_mistake_ended_before_its_first_step_can_be_begun_again(tmp_path):
    """Nothing is lost, and with the mistake mended its settings are others."""
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").touch()
    assert runs.previous(tmp_path, "never") is None and runs.previous(tmp_path, "auto") is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="already holds a run"):
        runs.previous(tmp_path, "never")
