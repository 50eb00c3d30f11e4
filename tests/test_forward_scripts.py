"""Painting in one pass, judged and timed: tables in closed form, and whole runs in small."""

import dataclasses
import json
import subprocess
import sys

import pytest
from scripts import EXPERIMENTS, load_script
from test_export import model_file

from ganstyle_jax.features import network_files, vgg
from ganstyle_jax.io.files import UserError

script = load_script("forward_judge")
pytestmark = pytest.mark.usefixtures("home")


def test_shares_of_the_optimised_pictures_fall():
    def entry(way, style, error, content):
        found = {"style": error, "content": content}
        return {"model": "m.safetensors", "way": way, "style": style, "vgg19": found, "squeezenet": found}

    entries = [
        *(entry(script.PHOTOGRAPH, style, error, 0.0) for style, error in (("a", 1.0), ("b", 2.0))),
        *(entry(script.OPTIMISED, style, error, 0.5) for style, error in (("a", 0.2), ("b", 0.4))),
        *(entry("m", style, error, 0.25) for style, error in (("a", 0.4), ("b", 0.4))),
    ]
    lines, text = script.table(entries, "m.safetensors", "m")
    assert [line["style"] for line in lines] == ["a", "b", "all"]
    assert [line["vgg19"]["share"] for line in lines] == [0.75, 1.0, pytest.approx(1.1 / 1.2, abs=1e-4)]
    assert lines[0]["squeezenet"]["content_forward"] == 0.25
    assert "| a | 1.000 | 0.200 | 0.400 | 75 % | 0.50 | 0.25 | 75 % | 0.50 | 0.25 |" in text


@pytest.mark.slow
def test_a_whole_judgement_in_small(data_dir, tmp_path, monkeypatch):
    network = vgg.VGG(((3,), (4,), (4,), (4, 4), (4,)))
    import jax

    network_files.write(tmp_path / "tiny.safetensors", network, network.init(jax.random.key(0)))
    model = model_file(tmp_path / "two.safetensors", style=["/x/starry_night.jpg", "/x/night.png"])
    adain = script.models.SHIPPED / "adain.safetensors"
    settings = script.Settings(
        data=data_dir,
        models=(str(model), str(adain)),
        size=96,
        style_size=128,
        photographs=2,
        any_styles=2,
        network=str(tmp_path / "tiny.safetensors"),
        out=tmp_path / "out",
        json=tmp_path / "record.json",
    )
    with pytest.raises(UserError, match="--size and --style-size must be at least"):
        script.main(dataclasses.replace(settings, size=16))
    record = script.main(settings)
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert [(line["model"], line["style"]) for line in record["summary"]] == [
        *(("two.safetensors", style) for style in ("starry_night", "night", "all")),
        *(("adain.safetensors", style) for style in ("starry_night", "the_scream", "all")),
    ]
    of = [line["squeezenet"] for line in record["summary"]]  # the real one
    assert all(line["optimised"] < line["photograph"] for line in of)
    for name in ("two.png", "adain.png"):
        assert (tmp_path / "out" / name).exists()
    made = {path.stat().st_mtime_ns for path in (tmp_path / "out" / "optimised").glob("*.png")}
    script.main(settings)  # again: what is optimised already is taken
    assert {path.stat().st_mtime_ns for path in (tmp_path / "out" / "optimised").glob("*.png")} == made


@pytest.mark.slow
def test_times_after_parity(torch, tmp_path):
    model = model_file(tmp_path / "sea.safetensors")
    bench, record = EXPERIMENTS / "bench" / "forward.py", tmp_path / "record.json"
    arguments = ["--model", model, "--sizes", "36", "--rounds", "2", "--no-compiled", "--json", record]
    subprocess.run([sys.executable, bench, *arguments], check=True, timeout=600)
    (row,) = json.loads(record.read_text())["rows"]
    assert row["size"] == 36 and set(row["seconds"]) == {"ours", "eager"} and row["ratio"] > 0
