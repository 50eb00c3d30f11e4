"""What a method draws for the judge, through the contract alone: latents, pictures of a source, titles, constants."""

import types

import jax
import judged_gan
import judged_translator
import numpy as np
import pytest

from ganstyle_jax import contract
from ganstyle_jax.control import Control
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import drawn, evaluate, sets
from ganstyle_jax.look import measure
from ganstyle_jax.loop import runs

pytestmark = pytest.mark.usefixtures("home", "quick_compile")

CFG, HORSES = judged_gan.Config(), judged_translator.Config()
STATE = {"scale": np.array([1.0, 2.0, 3.0], np.float32)}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text("def colours(images):\n    return images.mean((1, 2))\n")
    return f"{path}:colours"


@pytest.fixture(scope="module")
def herd(tmp_path_factory):
    """{source: .npz}: 40 dark horses, and 70 light zebras, of the opposite colours of other horses."""
    folder, rng = tmp_path_factory.mktemp("herd"), np.random.default_rng(0)
    animals = (rng.integers(0, 100, (110, 1, 1, 3)) + rng.integers(0, 20, (110, 16, 16, 3))).astype(np.uint8)
    np.savez(folder / "horses.npz", images=animals[:40])
    np.savez(folder / "zebras.npz", images=255 - animals[40:])
    return {name: str(folder / f"{name}.npz") for name in ("horses", "zebras")}


def joined(drawn_images):
    return np.concatenate(list(drawn_images[0]))


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_a_picture_does_not_depend_on_how_many_are_drawn(batch_norm):
    cfg = judged_gan.Config(batch_norm=batch_norm)
    whole = joined(drawn.drawn_by(judged_gan, cfg, STATE, 128))
    for count in (2, 64, 100):
        np.testing.assert_array_equal(joined(drawn.drawn_by(judged_gan, cfg, STATE, count)), whole[:count])
    assert len(whole) == 128 and whole.dtype == np.uint8


def test_what_the_protocol_says_of_a_generator():
    about = drawn.drawn_by(judged_gan, CFG, STATE, 5)[1]
    assert about == {"source": "generator", "count": 5, "image_size": 16, "batch_norm": "running"}
    about = drawn.drawn_by(judged_translator, judged_translator.Config(16, 24), {}, 5)[1]
    assert about == {"source": "generator", "count": 5, "image_size": [16, 24], "title": "as a zebra"}


def test_another_generator_of_the_same_config_is_not_compiled_again():
    joined(drawn.drawn_by(judged_gan, CFG, STATE, 3))
    make, draw = drawn._programs(None)
    before = make._cache_size(), draw._cache_size()
    other = jax.tree.map(lambda x: 2 * x, STATE)
    assert np.abs(joined(drawn.drawn_by(judged_gan, CFG, other, 3)).astype(int) - 128).mean() > 60
    assert (make._cache_size(), draw._cache_size()) == before


def test_pictures_of_a_source_become_the_title_that_is_judged(herd):
    method, constants = contract.of(judged_translator), judged_translator.constants(HORSES)
    state = judged_translator.init(jax.random.key(0), HORSES, constants)
    examples = drawn.examples_of(method, HORSES, herd)
    shown, about = drawn.drawn_by(method, HORSES, state, 500, constants=constants, examples=examples)
    assert about["count"] == len(shown) == 40 and about["examples"] == ["horses"]  # no horse is judged twice
    with np.load(herd["horses"]) as file:
        expected = 255 - file["images"]
    found = np.concatenate(list(shown))
    order = sets.data.permutation(0, 40, 0)
    assert np.abs(found.astype(int) - expected[order]).max() <= 1
    with pytest.raises(UserError, match=r"judged_translator.py draws of pictures of the source horses, and none are"):
        joined(drawn.drawn_by(method, HORSES, state, 4, constants=constants))


def test_examples_are_read_when_they_are_looked_at(herd):
    given = {"horses": herd["horses"], "zebras": "nowhere.npz"}
    examples = drawn.examples_of(contract.of(judged_translator), HORSES, given)(50)
    assert set(examples) == {"horses", "zebras"} and not examples.looked_at
    images = examples["horses"]["image"]
    assert images.shape == (50, 16, 16, 3) and images.dtype == np.float32 and -1 <= images.min() < images.max() <= 1
    np.testing.assert_array_equal(images[40:], images[:10])  # there are 40
    assert examples.looked_at == {"horses": 40}
    with pytest.raises(UserError, match=r"nowhere.npz"):
        examples["zebras"]
    with pytest.raises(KeyError):
        examples["zebra"]


def test_a_method_that_does_not_say_what_is_judged():
    method = types.ModuleType("two")
    vars(method).update({k: v for k, v in vars(judged_translator).items() if not k.startswith("__") and k != "judged"})
    method.__file__ = "two.py"
    with pytest.raises(UserError, match=r"has the sources horses, zebras and does not say .* judged\(cfg\)"):
        drawn.drawn_by(method, HORSES, {}, 4)


def test_pictures_that_are_not_finite():
    with pytest.raises(UserError, match="not finite: take an earlier --step"):
        joined(drawn.drawn_by(judged_gan, CFG, {"scale": np.full(3, np.nan, np.float32)}, 3))


# ---------------------------------------------------------------------------------------------------------------------
# In training, and a run's


def test_in_training_with_two_sources_and_constants(herd, mine):
    constants = judged_translator.constants(HORSES)
    state = judged_translator.init(jax.random.key(0), HORSES, constants)
    chosen = evaluate.Settings(("precision_recall", "fid"), mine, count=30, real_count=60)
    assess = evaluate.in_training(judged_translator, HORSES, herd, chosen, mesh(), constants)
    record = assess(7, state)
    found = record["metrics"]
    f1 = 2 * found["precision"] * found["recall"] / (found["precision"] + found["recall"])
    assert (record["step"], record["score_of"], record["score"]) == (7, "precision_recall", pytest.approx(-f1))
    protocol = record["protocol"]
    assert protocol["real"] == {"source": "zebras.npz", "count": 60, "of": 70, "image_size": 16}
    assert protocol["fake"]["count"] == 30 and protocol["colours"] == "sRGB"
    wrong = assess(8, {"factor": np.float32(0)})
    assert wrong["score"] > record["score"] and wrong["metrics"]["fid"] > record["metrics"]["fid"]


def test_an_evaluation_is_given_up_when_the_run_is_to_stop(mine, pictures, monkeypatch):
    control, batches = Control(), []

    def look_and_stop(images):
        batches.append(len(images))
        if len(batches) == 2:
            control.stop()
        return np.asarray(images)

    monkeypatch.setattr(drawn.images, "to_uint8", lambda x: look_and_stop((127.5 * (x + 1)).round().astype(np.uint8)))
    chosen = evaluate.Settings(("fid",), mine, count=6400, real_count=20)
    assess = evaluate.in_training(judged_gan, CFG, str(pictures), chosen, mesh(), control=control)
    with pytest.raises(evaluate.Interrupted):
        assess(4, STATE)
    assert len(batches) < 8  # of a hundred
    with pytest.raises(evaluate.Interrupted):
        assess(4, STATE)  # at once
    assert len(batches) < 8
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # one that left the others alone would make them wait for ever
    small = evaluate.Settings(("fid",), mine, count=64, real_count=20)
    record = evaluate.in_training(judged_gan, CFG, str(pictures), small, mesh(), control=control)(4, STATE)
    assert record["metrics"]["fid"] > 0


def test_a_run_with_several_sources_is_compared_with_the_one_that_is_judged(herd, mine, tmp_path, monkeypatch):
    constants = judged_translator.constants(HORSES)
    state = judged_translator.init(jax.random.key(0), HORSES, constants)
    loaded = types.SimpleNamespace(
        **{"method": contract.of(judged_translator), "cfg": HORSES, "state": state, "step": 12, "data": herd},
        constants=constants,
    )
    monkeypatch.setattr(runs, "load", lambda run_dir, step, **overrides: loaded)
    (tmp_path / "run.json").write_text("{}")
    chosen = evaluate.Settings(("fid",), mine, count=30, real_count=60)
    record = measure.run(str(tmp_path), measure.Options(), chosen)
    assert record["step"] == 12 and record["protocol"]["real"]["source"] == "zebras.npz"
    (kept,) = runs.evaluations(tmp_path)
    assert kept == record  # by the same protocol, also after JSON
    in_training = evaluate.in_training(judged_translator, HORSES, herd, chosen, mesh(), constants)(12, state)
    assert in_training["protocol"] == kept["protocol"] and in_training["metrics"] == pytest.approx(kept["metrics"])
    other = measure.run(tmp_path, measure.Options(reference=herd["horses"]), chosen)
    assert other["protocol"]["real"]["source"] == "horses.npz"


def test_a_run_is_measured_on_pictures_that_it_did_not_learn_from(herd, mine, tmp_path, monkeypatch):
    """`--data pair.zip/test`, or each source by its name: what is painted and what it is compared with."""
    constants = judged_translator.constants(HORSES)
    state = judged_translator.init(jax.random.key(0), HORSES, constants)
    loaded = types.SimpleNamespace(
        **{"method": contract.of(judged_translator), "cfg": HORSES, "state": state, "step": 12, "data": herd},
        constants=constants,
    )
    monkeypatch.setattr(runs, "load", lambda run_dir, step, **overrides: loaded)
    (tmp_path / "run.json").write_text("{}")
    rng = np.random.default_rng(1)
    for side, low in (("A", 0), ("B", 128)):
        for i in range(3 + (side == "B")):
            picture = rng.integers(low, low + 127, (16, 16, 3), np.uint8)
            drawn.images.save_png(tmp_path / "pair" / f"test{side}" / f"{i}.png", picture)
    chosen = evaluate.Settings(("fid",), mine, count=30, real_count=60)
    record = measure.run(tmp_path, measure.Options(data=(f"{tmp_path}/pair/test",)), chosen)
    said = record["protocol"]
    assert (said["real"]["source"], said["real"]["count"], said["fake"]["count"]) == ("testB", 4, 3)
    assert said["fake"]["examples"] == {"horses": "testA"}
    named = (f"horses={tmp_path}/pair/testA", f"zebras={tmp_path}/pair/testB")
    assert measure.run(tmp_path, measure.Options(data=named), chosen)["metrics"] == record["metrics"]
    other = measure.run(tmp_path, measure.Options(data=named, reference=herd["zebras"]), chosen)
    assert other["protocol"]["real"]["source"] == "zebras.npz"
    with pytest.raises(UserError, match=r"give --data horses=SOURCE zebras=SOURCE, or one .* got testA"):
        measure.run(tmp_path, measure.Options(data=("testA",)), chosen)
    with pytest.raises(UserError, match=r"--data is for a run, and .*testA is none"):
        measure.run(tmp_path / "pair/testA", measure.Options(data=named, reference="x"), chosen)
