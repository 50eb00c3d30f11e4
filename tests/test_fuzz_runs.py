"""Readers of run folders meet damaged ones: a page or a sentence, never a traceback, and nothing of a run changed."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.look import collect, explain, report
from ganstyle_jax.look.explain import style
from ganstyle_jax.loop import runs

HOSTILE = [
    *(None, True, False, 0, -1, 3.5, 10**400, 2**63, 1e308, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        "x",
        "\ud800",
        "a\x00b",
        "<script>alert(1)</script>",
        "/etc/passwd",
        "../../run.json",
        "{{ 7 * 7 }}",
        "a" * 9999,
    ),
    *([], {}, [None], {"a": None}, [[1, 2], "x"], {"step": "x"}, [10**400], {"": {"": []}}),
]


def nested(levels):
    return json.loads("[" * levels + "]" * levels)


def write_run(folder, method, **loop):
    """A run folder with one of everything that readers look at."""
    for name in ("samples", "steps", "explain"):
        (folder / name).mkdir(parents=True)
    config = {"image_size": 16, "size": 16, "loss": "hinge", "channels": 3, "optimizer": "lbfgs"}
    loop = {"steps": 20, "batch_size": 8, "seed": 0, "styles": ["a.jpg"], "features": "compact", "out": "/home/x/y.png"}
    description = {"method": method, "config": config, "data": "glyphs", "loop": loop}
    description |= {"versions": {"jax": "0.1"}, "devices": ["cpu cpu"], "processes": 1}
    (folder / "run.json").write_text(json.dumps(description))
    lines = [{"step": i, "loss": 1.0, "loss/gen": 2.0, "style/relu1_1": 0.5, "size": [8 + i, 8]} for i in range(3)]
    lines.append({"step": 3, "diversity": 0.1, "warning": "it has collapsed", "seconds": 2.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    protocol = {"features": "compact", "real": {"source": "glyphs", "count": 10}, "seed": 0}
    records = [{"step": i, "metrics": {"fid": 3.0 + i, "fid_spread": 0.1}, "protocol": protocol} for i in range(2)]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sections = [{"title": "T", "text": "Words.", "pictures": [{"file": "a.png", "caption": "Of it."}]}]
    (folder / "explain" / "explain.json").write_text(json.dumps({"sections": sections}))
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    for name in ("samples/000001", "steps/000002", "explain/a", "content", "style-1", "result"):
        images.save_png(folder / f"{name}.png", noise)


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return rng.choice(
        [
            lambda: content[:at],
            lambda: content[:at] + content[at + rng.randrange(1, 40) :],
            lambda: content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:],
            lambda: content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
            lambda: content[at:] + content[:at],
            lambda: b"",
            lambda: b"\xff\xfe" + content,
        ]
    )()


def mutated_value(value, rng: random.Random):
    """JSON in which one part, at any depth, is replaced, doubled or taken away."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        copy = value.copy()
        choice = rng.random()
        if choice < 0.1:
            del copy[key]
        elif choice < 0.2 and isinstance(value, dict):
            copy[rng.choice(["", "a" * 999, "/a/b/c", "\ud800", "step", "loss/x"])] = copy.pop(key)
        else:
            copy[key] = mutated_value(value[key], rng)
        return copy
    return rng.choice([*HOSTILE, nested(15), nested(60), nested(600)])


def mutate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    if path.suffix == ".png" or rng.random() < 0.25:
        path.write_bytes(mutated_bytes(content, rng))
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        i = rng.randrange(len(lines))
        lines[i] = mutated_value(lines[i], rng)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.write_text(json.dumps(mutated_value(json.loads(content), rng)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_all(folder: Path, out: Path) -> int:
    """Every reader of a run folder; how many of them had something to say."""
    readers = [
        lambda: report.write([folder], out / "report.html", 0),
        lambda: explain.run(folder, out / "explain"),
        lambda: collect.table(collect.collect([folder], force=True)),
        lambda: json.dumps(collect.record(collect.collect([folder], force=True))),
        lambda: collect.collect([folder, folder.parent], force=False),
        lambda: (runs.read_lines(folder / "metrics.jsonl"), runs.evaluations(folder), runs.best_step(folder)),
    ]
    read = 0
    for reader in readers:
        try:
            reader()
            read += 1
        except UserError as error:
            assert str(error).strip() and "Traceback" not in str(error)
    return read


@pytest.fixture
def shallow(monkeypatch):
    """Without what takes long and reads nothing more of a run folder: restoring checkpoints, optimising pictures."""

    def load(run_dir, step=None):
        runs.read(run_dir)
        raise UserError(f"{run_dir} holds no checkpoint yet")

    monkeypatch.setattr(runs, "load", load)
    monkeypatch.setattr(style, "explain_style", lambda *args: [])


def fuzz(tmp_path: Path, count: int, seed: int) -> None:
    rng, read = random.Random(seed), 0
    for kind in ("dcgan", "gatys"):
        write_run(tmp_path / kind, kind)
        assert read_all(tmp_path / kind, tmp_path / "out") == (5 if kind == "dcgan" else 6)
    for i in range(count):
        kind = rng.choice(["dcgan", "gatys"])
        folder = tmp_path / "case" / "run"
        shutil.copytree(tmp_path / kind, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        weights = [1 if path.suffix == ".png" else 4 for path in files]
        changed = rng.choices(files, weights, k=rng.choice([1, 1, 2]))
        for path in dict.fromkeys(changed):
            mutate(path, rng)
        before = contents(folder)
        try:
            read += read_all(folder, tmp_path / "out")
        except Exception as error:
            names = [str(path.relative_to(folder)) for path in changed]
            raise AssertionError(f"case {i} of seed {seed}, {kind}: {names} changed") from error
        assert contents(folder) == before, f"case {i}: a reader wrote into the run folder"
        shutil.rmtree(folder)
    assert read > 2 * count  # most that is damaged leaves most of the rest readable


def test_damaged_run_folders(tmp_path, shallow):
    fuzz(tmp_path, 25, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_damaged_run_folders(tmp_path, shallow, seed):
    fuzz(tmp_path, 250, seed)
