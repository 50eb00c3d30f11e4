"""Tables of many runs."""

import json
import math

import pytest

from ganstyle_jax import cli
from ganstyle_jax.io.files import UserError
from ganstyle_jax.look import collect
from ganstyle_jax.loop import runs


def write_run(folder, seed, log, method="dcgan", **config):
    folder.mkdir(parents=True)
    loop = {"seed": seed, "batch_size": 8, "run_dir": str(folder), "devices": seed}
    description = {"method": method, "config": {"loss": "hinge", "width": 8} | config, "data": "glyphs", "loop": loop}
    (folder / "run.json").write_text(json.dumps(description))
    if log is not None:
        (folder / "metrics.jsonl").write_text(log)


@pytest.fixture
def sweep(tmp_path):
    write_run(tmp_path / "a" / "0", 0, '{"step": 5, "loss/gen": 9.0}\n{"step": 10, "loss/gen": 1.0}\n')
    write_run(
        tmp_path / "a" / "1", 1, '{"step": 10, "loss/gen": 2.0}\n{"step": 10, "diversity": 0.5}\n{"step": 12, "lo'
    )
    write_run(tmp_path / "b", 0, '{"step": 10, "loss/gen": 7.0, "warning": "collapsed"}\n', loss="wgan")
    return tmp_path


def test_seeds_become_a_mean_and_a_spread(sweep):
    a, b = collect.collect([sweep])
    assert a.settings == {"loss": "hinge"} and b.settings == {"loss": "wgan"}  # nothing else differs but the seed
    assert a.means == {"loss/gen": 1.5, "diversity": 0.5} and a.steps == (10, 10)
    assert a.spreads["loss/gen"] == pytest.approx(0.5**0.5) and math.isnan(a.spreads["diversity"])
    assert b.means == {"loss/gen": 7.0} and math.isnan(b.spreads["loss/gen"])


def test_each_method_has_a_table_of_its_own(sweep, capsys):
    write_run(sweep / "c", 0, '{"step": 3, "loss/style": 2.0}\n', method="gatys", loss="gram", pooling="max")
    cli.main(["collect", str(sweep)])
    assert capsys.readouterr().out.splitlines() == [
        "dcgan",
        "",
        "| loss | runs | steps | loss/gen | diversity |",
        "| --- | --- | --- | --- | --- |",
        "| hinge | 2 | 10 | 1.5 ± 0.71 | 0.5 |",
        "| wgan | 1 | 10 | 7 |  |",
        "",
        "gatys",
        "",
        "| runs | steps | loss/style |",
        "| --- | --- | --- |",
        "| 1 | 3 | 2 |",
    ]


def test_runs_without_a_log_yet(tmp_path):
    write_run(tmp_path / "a", 0, None)
    (row,) = collect.collect([tmp_path / "a"])
    assert row.settings == {} and row.steps == (0,) and row.means == {}
    assert collect.table([row]).splitlines()[-1] == "| 1 | 0 |"


def test_command(sweep, capsys, tmp_path):
    cli.main(["collect", str(sweep), "--json", str(tmp_path / "table.json")])
    assert capsys.readouterr().out.splitlines() == [
        "| loss | runs | steps | loss/gen | diversity |",
        "| --- | --- | --- | --- | --- |",
        "| hinge | 2 | 10 | 1.5 ± 0.71 | 0.5 |",
        "| wgan | 1 | 10 | 7 |  |",
    ]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["spreads"]["loss/gen"] for row in rows] == [pytest.approx(0.5**0.5), None]


def evaluation(step=10, fid=3.0, resize="clean", count=100):
    protocol = {"features": "compact", "resize": resize, "real": {"count": count}}
    return {"step": step, "metrics": {"fid": fid}, "protocol": protocol}


def test_evaluations_are_collected_only_where_they_were_made_in_the_same_way(sweep):
    for name, fid in [("a/0", 1.0), ("a/1", 3.0), ("b", 8.0)]:
        runs.add_evaluation(sweep / name, evaluation(5, 99.0, "none"))  # an earlier one does not count
        runs.add_evaluation(sweep / name, evaluation(10, fid))
    a, b = collect.collect([sweep])
    assert a.means["evaluation/fid"] == 2 and b.means["evaluation/fid"] == 8
    runs.add_evaluation(sweep / "b", evaluation(10, 8.0, "none", 50))
    with pytest.raises(UserError, match=r"\(real.count 100 and 50; resize 'clean' and 'none'\).*--force"):
        collect.collect([sweep])
    assert collect.collect([sweep], force=True)[1].means["evaluation/fid"] == 8


def test_best_step_is_of_training_alone(sweep):
    run = sweep / "b"
    assert runs.best_step(run) is None
    runs.add_evaluation(run, evaluation(10, 0.0))  # by hand, perhaps of other images
    for step, score in [(4, 3.0), (8, 1.0), (12, 2.0)]:
        runs.add_evaluation(run, evaluation(step) | {"score": score})
    with open(run / "evaluations.jsonl", "a") as file:
        file.write('{"step": 16, "sco')  # cut off by a kill
    assert runs.best_step(run) == 8 and len(runs.evaluations(run)) == 4


def test_folders_without_runs(tmp_path):
    with pytest.raises(UserError, match="ganstyle collect runs"):
        collect.collect([])
    with pytest.raises(UserError, match=f"no runs in {tmp_path}"):
        collect.collect([tmp_path])


def test_data_of_several_sources(tmp_path):
    for name, zebras in (("a", "z.zip"), ("b", "y.zip")):
        write_run(tmp_path / name, 0, None)
        description = json.loads((tmp_path / name / "run.json").read_text())
        description["data"] = {"horses": "h.zip", "zebras": zebras}
        (tmp_path / name / "run.json").write_text(json.dumps(description))
    rows = collect.collect([tmp_path])
    assert [row.settings for row in rows] == [{"data": f"horses=h.zip zebras={x}.zip"} for x in "zy"]


def test_a_damaged_run_is_left_out(sweep, capsys):
    (sweep / "b" / "run.json").write_text("{")
    assert len(collect.collect([sweep])) == 1
    assert f"Left out: {sweep / 'b' / 'run.json'} cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read"):
        collect.collect([sweep / "b"])


def test_values_that_are_no_number_and_names_that_end_a_cell(tmp_path):
    log = '{"step": 3, "a|b": Infinity, "c": NaN, "d": true, "e": "x", "f": 1' + "0" * 400 + "}\n7\n"
    write_run(tmp_path / "0", 0, log, loss="a | b\nc")
    write_run(tmp_path / "1", 1, '{"step": NaN, "a|b": 1.0}\n', loss="x")
    rows = collect.collect([tmp_path])
    assert [row.steps for row in rows] == [(3,), (0,)] and set(rows[0].means) == {"a|b", "c"}
    first, _, one, _ = collect.table(rows).splitlines()
    assert first == r"| loss | runs | steps | a\|b | c |" and one.startswith(r"| a \| b c | 1 | 3 | nan | nan |")
    assert json.loads(json.dumps(collect.record(rows), allow_nan=False))[0]["means"] == {"a|b": None, "c": None}


def test_evaluations_that_are_none(sweep):
    with open(sweep / "b" / "evaluations.jsonl", "a") as file:
        file.write('{"step": 1, "metrics": [1], "protocol": {}}\n{"step": "x", "metrics": {}, "protocol": 3}\n')
    assert collect.collect([sweep])[1].means == {"loss/gen": 7.0}
