"""The benchmark script at a tiny size, and that it refuses to time two sides that do not agree."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax.io.files import UserError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "experiments" / "bench" / "dcgan.py"
REQUIRED = os.environ.get("GANSTYLE_REQUIRE_DATA") == "1"
TINY = ["--image-size", "16", "--width", "4", "--batch-size", "4", "--rounds", "2", "--steps", "2"]


bench = load_script("bench/dcgan")


@pytest.fixture(scope="module")
def torch_installed() -> None:
    if importlib.util.find_spec("torch") is None:
        if REQUIRED:
            pytest.fail("PyTorch is not installed")
        pytest.skip("PyTorch is not installed: pip install torch")


def run_script(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


# ---------------------------------------------------------------------------------------------------------------------
# The script


def check_record(record: dict, contestants: list[str]) -> dict:
    """Everything that a record must hold; returns its only result."""
    assert record["command"].split()[1] == str(SCRIPT)
    assert record["date"].endswith("+00:00")
    assert record["machine"]["cores"] >= 1
    assert record["machine"].keys() == {"system", "cpu", "cores", "memory_gib", "gpus", "load_average"}
    assert all(record["versions"]["jax"][name] for name in ("python", "jax", "jaxlib", "flax", "optax"))
    assert all(record["versions"]["torch"][name] for name in ("python", "torch"))
    assert record["settings"]["image_size"] == 16 and record["settings"]["rounds"] == 2
    (result,) = record["results"]
    assert list(result["contestants"]) == contestants
    for contestant in result["contestants"].values():
        times = contestant["seconds_per_step"]
        assert len(times) == 2 and min(times) > 0
        assert (contestant["min"], contestant["max"]) == (min(times), max(times))
        assert contestant["median"] == pytest.approx(median(times))
        assert contestant["images_per_second"] == pytest.approx(4 / median(times))
        assert contestant["compile_seconds"] > 0
    medians = {mode: contestant["median"] for mode, contestant in result["contestants"].items()}
    ours = medians.pop("ours")
    assert result["ratio"] == pytest.approx(ours / min(medians.values()))
    assert medians[result["best_torch"]] == min(medians.values())
    return result


@pytest.mark.slow
def test_times_float32_after_parity(torch_installed, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")  # torch.compile needs one on a CPU
    compiled = [] if compiler else ["--no-compiled"]
    done = run_script(*TINY, *compiled, "--json", str(tmp_path / "record.json"))
    assert done.returncode == 0, done.stderr
    contestants = ["ours", "eager", "default"] if compiler else ["ours", "eager"]
    result = check_record(json.loads((tmp_path / "record.json").read_text()), contestants)

    checks = ["float32, eager", "as timed, default"] if compiler else ["float32, eager"]
    assert list(result["parity"]) == checks
    for errors in result["parity"].values():
        assert errors.keys() == bench.TOLERANCES.keys()
        assert all(errors[name] <= bench.TOLERANCES[name] for name in errors)
    header, _, row = done.stdout.splitlines()
    assert header.count("|") == row.count("|") and "| 16 | 4 | float32 |" in row
    assert done.stderr.index("parity:") < done.stderr.index("round 1 of 2")


@pytest.mark.slow
def test_times_bfloat16_after_parity_in_both_precisions(torch_installed, tmp_path):
    done = run_script(*TINY, "--no-compiled", "--dtype", "bfloat16", "--json", str(tmp_path / "record.json"))
    assert done.returncode == 0, done.stderr
    parity = check_record(json.loads((tmp_path / "record.json").read_text()), ["ours", "eager"])["parity"]
    assert list(parity) == ["float32, eager", "as timed, eager"]
    assert all(error <= bench.TOLERANCES[name] for name, error in parity["float32, eager"].items())
    # Above float32's: at least one side did round to 8 bits.
    assert bench.TOLERANCES["images"] < parity["as timed, eager"]["images"] <= bench.ROUGH_TOLERANCES["images"]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--torch-python", "no/such/python"], "there is no program no/such/python"),
        (["--image-size", "24"], "power of two from 16 to 256, got 24"),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--jax-python", shutil.which("false") or "/bin/false"], "ended with status 1"),
    ],
)
def test_failures_are_one_sentence_and_a_status(arguments, expected):
    done = run_script("--no-compiled", *arguments)
    assert done.returncode != 0
    assert expected in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


def test_sweep_asks_for_each_batch_and_dtype(monkeypatch, tmp_path, capsys):
    asked = []

    def measure(one):
        asked.append((one.batch_size, one.dtype))
        speeds = {"ours": 0.01, "eager": 0.02, "default": 0.04}
        contestants = {mode: bench.summary([seconds], one.batch_size) for mode, seconds in speeds.items()}
        if one.dtype == "bfloat16":
            contestants["default"] = {"error": "no compiler"}
        common = {"image_size": one.image_size, "batch_size": one.batch_size, "dtype": one.dtype}
        return common | {"versions": {}, "contestants": contestants, **bench.machine.compare(speeds)}

    monkeypatch.setattr(bench, "measure", measure)
    bench.main(bench.Bench(sweep=True, json=tmp_path / "sweep.json"))
    assert asked == [(128, "float32"), (128, "bfloat16"), (1024, "float32"), (1024, "bfloat16")]
    assert len(json.loads((tmp_path / "sweep.json").read_text())["results"]) == 4
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| image | batch | dtype | ganstyle_jax, images/s | PyTorch eager, images/s |")
    assert rows[2] == "| 64 | 128 | float32 | 12,800 | 6,400 | 3,200 | 0.500 |"
    assert rows[5] == "| 64 | 1024 | bfloat16 | 102,400 | 51,200 | failed | 0.500 |"


def test_a_bare_name_goes_into_the_results(monkeypatch, tmp_path):
    monkeypatch.setattr(bench.machine, "RESULTS", tmp_path / "results")
    assert bench.machine.write_record(Path("x.json"), {"a": 1}) == tmp_path / "results" / "x.json"
    assert json.loads((tmp_path / "results" / "x.json").read_text()) == {"a": 1}
    assert bench.machine.write_record(tmp_path / "y.json", {}) == tmp_path / "y.json"


def test_durations_and_memory_of_a_record():
    """Nothing is so short that it takes 0 s, and a process is not said to hold what the one that started it held."""
    assert [bench.machine.seconds(x) for x in (1.23456e-7, 0.0612345, 123.456)] == [1.235e-7, 0.06123, 123.5]
    ballast = b"x" * (400 << 20)
    command = [sys.executable, "-c", "import machine; print(machine.peak_bytes())"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parent, check=True)
    assert 1 << 20 < int(done.stdout) < len(ballast) // 2
    assert bench.machine.peak_bytes() > len(ballast)


def test_the_best_of_pytorch_is_compared_with():
    assert bench.machine.compare({"ours": 3.0, "eager": 2.0, "default": 4.0}) == {"best_torch": "eager", "ratio": 1.5}
    assert bench.machine.compare({"ours": 3.0, "eager": 8.0, "default": 6.0}) == {"best_torch": "default", "ratio": 0.5}


def test_only_float32_without_tf32_is_exact():
    cpu, gpu = bench.Bench(), bench.Bench(device="gpu")
    assert cpu.exact and not gpu.exact
    assert dataclasses.replace(gpu, tf32=False).exact
    assert not dataclasses.replace(cpu, dtype="bfloat16").exact
    assert not dataclasses.replace(gpu, tf32=False, dtype="bfloat16").exact


# ---------------------------------------------------------------------------------------------------------------------
# Parity


def numbers() -> dict:
    rng = np.random.default_rng(0)
    return {
        "images": rng.uniform(-1, 1, (2, 4, 4, 3)),
        "logits": rng.normal(size=2),
        "update": 0.01 * rng.normal(size=(2, 4, 4, 3)),
        "loss/disc": 1.4,
        "loss/gen": 8.0,
    }


def changed(name: str, by: float) -> dict:
    """`numbers` with one number of one entry moved; all of "update", which is compared as a whole."""
    result = numbers()
    if name == "update":
        result[name] = result[name] * (1 + by)
    elif isinstance(result[name], float):
        result[name] += by
    else:
        result[name].flat[0] += by
    return result


@pytest.mark.parametrize("name, inside", [("images", 9e-5), ("logits", 9e-5), ("loss/disc", 1.9e-4), ("update", 0.09)])
@pytest.mark.parametrize("sign", [1, -1])
def test_parity_accepts_rounding_and_refuses_more(name, inside, sign):
    errors = bench.parity_errors(changed(name, sign * inside), numbers(), bench.TOLERANCES, "eager")
    assert errors[name] == pytest.approx(inside, rel=0.5)
    assert all(error == 0 for other, error in errors.items() if other != name)
    with pytest.raises(UserError, match=f"{name} differs from PyTorch \\(eager\\)"):
        bench.parity_errors(changed(name, sign * 20 * inside), numbers(), bench.TOLERANCES, "eager")


def test_parity_of_values_above_one_is_relative():
    errors = bench.parity_errors(changed("loss/gen", 8e-4), numbers(), bench.TOLERANCES, "eager")
    assert errors["loss/gen"] == pytest.approx(1e-4, rel=1e-3)
    with pytest.raises(UserError, match="loss/gen"):
        bench.parity_errors(changed("loss/gen", 2e-3), numbers(), bench.TOLERANCES, "eager")


@pytest.mark.parametrize("name", list(numbers()))
def test_parity_refuses_nan_other_shapes_and_missing_entries(name):
    good, bad = numbers(), numbers()
    bad[name] = np.full_like(bad[name], np.nan)
    for sides in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(UserError, match="differs from PyTorch"):
            bench.parity_errors(*sides, bench.TOLERANCES, "eager")
    bad[name] = np.zeros((2, 3))
    with pytest.raises(UserError, match="shape"):
        bench.parity_errors(good, bad, bench.TOLERANCES, "eager")
    del bad[name]
    with pytest.raises(UserError, match=f"{name} cannot be checked: PyTorch gave none"):
        bench.parity_errors(good, bad, bench.TOLERANCES, "eager")
    with pytest.raises(UserError, match=f"{name} cannot be checked: JAX gave none"):
        bench.parity_errors(bad, good, bench.TOLERANCES, "eager")


def test_parity_refuses_a_step_that_changes_nothing():
    good, bad = numbers(), numbers()
    bad["update"] = np.zeros_like(bad["update"])
    for sides in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(UserError, match="update differs"):
            bench.parity_errors(*sides, bench.ROUGH_TOLERANCES, "eager")


# ---------------------------------------------------------------------------------------------------------------------
# All comparisons by one command


def test_ratios_are_of_times_whatever_the_unit():
    script = load_script("bench/against_pytorch")
    slower = script.Row("a step", "ms", ours=0.3, published=0.2, tuned=0.1, tuned_by="compiled")
    assert (slower.ratio(slower.published), slower.ratio(slower.tuned)) == pytest.approx((1.5, 3.0))
    faster = script.Row("pictures", "images/s", ours=300.0, published=None, tuned=150.0, tuned_by="DataLoader")
    assert (faster.ratio(faster.published), faster.ratio(faster.tuned)) == (None, 0.5)
    made = script.row("a step", "ms", {"ours": 0.3, "published": 0.4, "eager": 0.2, "default": 0.25}, "published")
    assert made == script.Row("a step", "ms", 0.3, 0.4, 0.2, "eager")
    machine = {"gpus": [], "cpu": "a CPU", "cores": 2, "load_average": 0.1}
    about = {"machine": machine, "versions": {"jax": "1", "torch": "2"}, "date": "2026-01-01T", "commit": "abc"}
    lines = script.markdown([slower, faster], about).splitlines()
    assert "a CPU, 2 cores; JAX 1, PyTorch 2; 2026-01-01, commit abc; load before the start 0.1." in lines
    assert "| a step | ms | 300 | 200 | 100 (compiled) | 1.50 | 3.00 |" in lines
    assert "| pictures | images/s | 300 |  | 150 (DataLoader) |  | 0.50 |" in lines


@pytest.mark.slow
def test_all_comparisons_by_one_command(torch_installed, tmp_path):
    command = [sys.executable, str(SCRIPT.with_name("against_pytorch.py")), "--quick", "--no-compiled"]
    command += ["--json", str(tmp_path / "all.json"), "--markdown", str(tmp_path / "all.md")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "all.json").read_text())
    assert list(record["parts"]) == ["step", "evaluation", "pipeline", "checkpoint", "start"]
    assert len(record["rows"]) == 8 and all(of["ours"] > 0 and of["tuned"] > 0 for of in record["rows"])
    with_published = [of for of in record["rows"] if of["published"]]
    assert len(with_published) == 7
    assert all(of["tuned"] <= of["published"] for of in with_published)  # the best of all counts
    assert list(record["parts"]["step"][0]["contestants"]) == ["ours", "eager", "published"]
    assert {*record["parts"]["start"]} == {
        f"{m}, {s}" for m in ("ours", "published", "eager") for s in ("cold", "warm")
    }
    assert (tmp_path / "all.md").read_text() in done.stdout
    assert record["versions"]["torch"] and record["machine"]["cores"] >= 1


def test_steps_as_published_and_as_timed_are_the_same(torch):
    """But for the order of sums, which makes no difference in float64."""
    import torch_dcgan

    made = []
    for step in (torch_dcgan.train_step, torch_dcgan.published_step):
        torch.manual_seed(0)
        networks = [torch_dcgan.Generator(16, 3, 8, 4).double(), torch_dcgan.Discriminator(16, 3, 4).double()]
        optimizers = [torch_dcgan.adam(network) for network in networks]
        images, z = torch.rand(4, 3, 16, 16, dtype=torch.double) * 2 - 1, torch.randn(4, 8, dtype=torch.double)
        losses = [step(*networks, *optimizers, images, z) for _ in range(2)]
        made.append([*(x for pair in losses for x in pair), *(x for of in networks for x in of.state_dict().values())])
    for one, other in zip(*made, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, atol=1e-8)
