"""Checkpoints: exact, kept by rule, whole or not there, and never trusted unread."""

import json
import os
import shutil
import string
import subprocess
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from jax.sharding import NamedSharding, PartitionSpec

from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import checkpoints as checkpoints_module
from ganstyle_jax.loop.checkpoints import PLAIN, Checkpoints, _arrays, _check_written, all_finite, digest


def state_of(step: int) -> dict:
    """A state of many dtypes and shapes, with values that a careless copy would change."""
    rng = np.random.default_rng(step)
    return {
        "weights": jnp.asarray(rng.normal(size=(64, 48)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(3, 5)), jnp.bfloat16),
        "nested": [jnp.asarray(rng.integers(0, 2**32, 7), jnp.uint32), {"scalar": jnp.float32(0.1)}],
        "edges": jnp.asarray([-0.0, 1e-45, 3.4e38, 0.0], jnp.float32),
        "mask": jnp.asarray([True, False]),
        "step": jnp.asarray(step, jnp.int32),
    }


def abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def saved(run_dir: Path, *steps: int, **arguments) -> Checkpoints:
    checkpoints = Checkpoints(run_dir, **arguments)
    for step in steps:
        checkpoints.save(step, state_of(step))
    checkpoints.wait()
    return checkpoints


def files_in(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# ---------------------------------------------------------------------------------------------------------------------
# Digest and finiteness


def test_digest_is_equal_for_equal_states_only():
    state = state_of(3)
    expected = digest(state)
    assert digest(state_of(3)) == expected and digest(jax.tree.map(np.asarray, state)) == expected
    changes = {
        "sign of zero": {"edges": state["edges"].at[0].set(0.0)},
        "last bit": {"weights": state["weights"].at[5, 5].set(np.nextafter(state["weights"][5, 5], np.float32(9)))},
        "shape": {"weights": state["weights"].reshape(48, 64)},
        "dtype of the same bytes": {"step": state["step"].view(jnp.uint32)},
        "empty shape": {"weights": jnp.zeros((0, 4))},
        "other empty shape": {"weights": jnp.zeros((4, 0))},
        "name": {"nested": [state["nested"][0], {"number": jnp.float32(0.1)}]},
    }
    digests = {name: digest(state | change) for name, change in changes.items()}
    assert len({expected, *digests.values()}) == 1 + len(changes), digests
    assert digest({"a": jnp.ones(2), "b": jnp.zeros(2)}) != digest({"a": jnp.zeros(2), "b": jnp.ones(2)})


def test_digest_does_not_depend_on_devices_or_memory_order():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    state = state_of(1)
    everywhere = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    assert digest(everywhere) == digest(state)
    divided = jax.device_put(state["weights"], NamedSharding(mesh, PartitionSpec("batch")))
    assert digest(state | {"weights": divided}) == digest(state)
    assert digest(state | {"weights": np.asfortranarray(state["weights"])}) == digest(state)


def test_all_finite():
    state = state_of(0)
    assert bool(all_finite(state))
    assert bool(all_finite({"counts": jnp.arange(3)}))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not bool(all_finite(state | {"half": state["half"].at[1, 1].set(bad)}))
        assert not bool(all_finite(state | {"weights": state["weights"].at[63, 47].set(bad)}))


# ---------------------------------------------------------------------------------------------------------------------
# Saving and restoring


def test_restores_every_bit(tmp_path):
    saved(tmp_path, 7)
    step, state = Checkpoints(tmp_path).restore(abstract(state_of(0)))
    assert step == 7 and digest(state) == digest(state_of(7))
    assert jax.tree.structure(state) == jax.tree.structure(state_of(7))


@pytest.mark.parametrize("before, after", [(8, 1), (1, 8), (8, 2)])
def test_restores_every_bit_on_other_devices(tmp_path, before, after):
    def everywhere(count):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("batch",))
        return NamedSharding(mesh, PartitionSpec())

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, jax.device_put(state_of(1), everywhere(before)))
    checkpoints.close()
    _, state = Checkpoints(tmp_path).restore(abstract(state_of(1), everywhere(after)))
    assert digest(state) == digest(state_of(1))
    assert all(len(leaf.sharding.device_set) == after for leaf in jax.tree.leaves(state))


def test_state_may_be_given_away_as_soon_as_save_returns(tmp_path):
    """The next training step is donated the buffers and writes into them while the files are being written."""
    advance = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    first, unsaved = (jnp.arange(4_000_000, dtype=jnp.float32) * 1 for _ in range(2))
    advance(unsaved)
    assert unsaved.is_deleted()  # donation is not a mere offer here
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weights": first})
    after = advance(first)
    for _ in range(5):
        after = advance(after)
    checkpoints.close()
    _, restored = Checkpoints(tmp_path).restore(abstract({"weights": after}))
    np.testing.assert_array_equal(restored["weights"], np.arange(4_000_000, dtype=np.float32))


def test_keeps_the_newest_three_and_every_so_many(tmp_path):
    checkpoints = saved(tmp_path, 10, 20, 30, 40, 50, 60, 70, keep_every=20)
    assert checkpoints.steps() == [20, 40, 50, 60, 70]
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert folders == {f"{step}{end}" for step in (20, 40, 50, 60, 70) for end in ("", ".sha256.json")}
    assert saved(tmp_path, 80, keep=1).steps() == [80]


def test_keeps_the_best_until_another_takes_its_place(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, best in [(10, 10), (20, 10), (30, 10), (40, 40), (50, 40)]:
            checkpoints.best = best
            checkpoints.save(step, state_of(step))
            checkpoints.wait()
            assert checkpoints.steps() == sorted({step, best})


def test_a_step_can_be_saved_again(tmp_path):
    checkpoints = saved(tmp_path, 5)
    checkpoints.save(5, state_of(6))
    checkpoints.close()
    assert digest(Checkpoints(tmp_path).restore(abstract(state_of(0)))[1]) == digest(state_of(6))


def test_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.steps() == [] and checkpoints.restore(abstract(state_of(0))) is None
    checkpoints.close()
    assert not (tmp_path / "new").exists()


def test_one_checkpoint_by_its_step(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, 3)
    step, state = checkpoints.restore(abstract(state_of(0)), 2)
    assert step == 2 and digest(state) == digest(state_of(2))
    with pytest.raises(UserError, match="holds no checkpoint of step 4: it has 1, 2, 3"):
        checkpoints.restore(abstract(state_of(0)), 4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": jnp.zeros((64, 47))}, r"weights is float32 of shape \(64, 48\) there and .*\(64, 47\) here"),
        ({"more": jnp.zeros(2)}, r"more is missing there and float32 of shape \(2,\) here"),
        ({"weights": jnp.zeros((64, 48), jnp.bfloat16)}, "weights is float32 of .* there and bfloat16 of .* here"),
    ],
)
def test_another_config_is_one_sentence(tmp_path, change, message):
    checkpoints = saved(tmp_path, 4)
    with pytest.raises(UserError, match=f"checkpoint 4 belongs to another config: {message}") as caught:
        checkpoints.restore(abstract(state_of(0) | change))
    assert "\n" not in str(caught.value)
    assert checkpoints.steps() == [4]


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def flip_a_bit(folder: Path) -> None:
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def zero_a_page(folder: Path) -> None:
    path = largest_file(folder)
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 4096 // 2 * 4096)
        file.write(bytes(min(4096, path.stat().st_size)))


def truncate(folder: Path) -> None:
    os.truncate(largest_file(folder), largest_file(folder).stat().st_size // 2)


def remove_a_file(folder: Path) -> None:
    largest_file(folder).unlink()


def remove_all_files(folder: Path) -> None:
    shutil.rmtree(folder)


def add_a_file(folder: Path) -> None:
    (folder / "more").write_bytes(b"")


def cut_the_sums(folder: Path) -> None:
    path = folder.with_name(f"{folder.name}.sha256.json")
    path.write_text(path.read_text()[:100])


def sums_of_nothing(folder: Path) -> None:
    folder.with_name(f"{folder.name}.sha256.json").write_text("{}")


def sums_of_another_kind(folder: Path) -> None:
    folder.with_name(f"{folder.name}.sha256.json").write_text('["a"]')


DAMAGE = [
    flip_a_bit,
    zero_a_page,
    truncate,
    remove_a_file,
    remove_all_files,
    add_a_file,
    cut_the_sums,
    sums_of_nothing,
    sums_of_another_kind,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage, caplog):
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "checkpoints" / "3")
    before = files_in(tmp_path)
    step, state = Checkpoints(tmp_path).restore(abstract(state_of(0)))
    assert step == 2 and digest(state) == digest(state_of(2))
    assert files_in(tmp_path) == before  # who only reads changes nothing
    checkpoints = Checkpoints(tmp_path)
    step, state = checkpoints.resume(abstract(state_of(0)))
    assert step == 2 and digest(state) == digest(state_of(2))
    assert "checkpoint 3 is damaged" in caplog.text and "falling back to the one before" in caplog.text
    # Set aside: it does not count among the newest, and the step can be written anew.
    assert checkpoints.steps() == [1, 2]
    checkpoints.save(3, state_of(3))
    checkpoints.close()
    assert checkpoints.restore(abstract(state_of(0)))[0] == 3


def test_damage_in_any_file_is_noticed(tmp_path):
    saved(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "1"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) >= 4
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        reason = Checkpoints(tmp_path)._damage(1)
        assert reason is not None and str(path.relative_to(folder)) in reason
        path.write_bytes(data)
    assert Checkpoints(tmp_path)._damage(1) is None


def test_all_damaged_is_one_sentence(tmp_path):
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        flip_a_bit(tmp_path / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged \(steps 1, 2\)") as caught:
        Checkpoints(tmp_path).restore(abstract(state_of(0)))
    assert "\n" not in str(caught.value)


def test_asked_for_one_that_is_damaged(tmp_path):
    saved(tmp_path, 1, 2)
    flip_a_bit(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match=r"checkpoint 1 in .* is damaged.*: choose another step"):
        Checkpoints(tmp_path).restore(abstract(state_of(0)), 1)


def test_remains_of_killed_writes_are_passed_over_and_cleared(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-17")  # killed while Orbax wrote
    shutil.copytree(folder / "2", folder / "4")  # killed between Orbax's last rename and the sums
    (folder / ".5-abc.json").write_text("{}")  # killed before the sums' rename
    assert checkpoints.steps() == [1, 2]
    assert Checkpoints(tmp_path).restore(abstract(state_of(0)))[0] == 2
    saved(tmp_path, 4)
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{step}{end}" for step in (1, 2, 4) for end in ("", ".sha256.json")}
    assert digest(Checkpoints(tmp_path).restore(abstract(state_of(0)))[1]) == digest(state_of(4))


def test_sums_are_those_of_the_files(tmp_path):
    saved(tmp_path, 1)
    sums = json.loads((tmp_path / "checkpoints" / "1.sha256.json").read_text())
    expected = subprocess.run(["sha256sum", *sums], cwd=tmp_path / "checkpoints" / "1", capture_output=True, text=True)
    assert expected.stdout.split()[::2] == list(sums.values())


# ---------------------------------------------------------------------------------------------------------------------
# What was written is read back before it counts


def test_every_printable_character_may_be_in_a_folders_name(tmp_path):
    small = {"weights": jnp.arange(6.0).reshape(2, 3)}
    printable = string.printable.replace("/", "")
    letters = string.ascii_letters + string.digits
    others = [character for character in printable if PLAIN.fullmatch(character) and character not in letters]
    for name in [printable, letters, *(f"a{character}b" for character in others), "\\", "["]:
        with Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save(1, small)  # which looks for the arrays in the files
        assert [path.name for path in tmp_path.iterdir()] == [name]
        if name == printable:
            assert digest(Checkpoints(tmp_path / name).restore(abstract(small))[1]) == digest(small)
        shutil.rmtree(tmp_path / name)


@pytest.mark.parametrize("name", ["a[x]b", "a[!x]", "*", "a?[0-9]*{b,c}", "a\\[b]", "50%25 #1 & ~$HOME", "größe", "-"])
def test_names_that_are_patterns_and_a_sibling_that_they_match(tmp_path, name):
    small = {"weights": jnp.arange(6.0).reshape(2, 3)}
    saved(tmp_path / "axb", 1)  # what `a[x]b` matches
    before = files_in(tmp_path / "axb")
    with Checkpoints(tmp_path / name) as checkpoints:
        checkpoints.save(1, small)
        checkpoints.save(2, small)
    reader = Checkpoints(tmp_path / name)
    step, state = reader.restore(abstract(small))
    assert step == 2 and digest(state) == digest(small) and reader._link is None
    assert files_in(tmp_path / "axb") == before
    assert digest(Checkpoints(tmp_path / "axb").restore(abstract(state_of(0)))[1]) == digest(state_of(1))


def test_an_empty_manifest_does_not_count(tmp_path, monkeypatch):
    """As Orbax writes it in a folder whose name is a pattern."""
    monkeypatch.setattr(Checkpoints, "_for_orbax", lambda self: self.folder)
    checkpoints = Checkpoints(tmp_path / "a[x]b")
    checkpoints.save(1, state_of(1))
    with pytest.raises(
        UserError, match=r"checkpoint 1 could not be written .*read back, .*there is none yet"
    ) as caught:
        checkpoints.close()
    assert "\n" not in str(caught.value)
    assert checkpoints.steps() == [] and list(checkpoints.folder.iterdir()) == []


def test_every_array_is_looked_for_with_all_its_parts(tmp_path):
    saved(tmp_path, 1)
    folder, arrays = tmp_path / "checkpoints" / "1", _arrays(state_of(1))
    _check_written(folder, arrays)
    with pytest.raises(OSError, match=r"read back, more is missing and was float32 of shape \(2,\)"):
        _check_written(folder, arrays | {"more": "float32 of shape (2,)"})
    with pytest.raises(OSError, match=r"read back, half is bfloat16 of .* and was float32 of"):
        _check_written(folder, arrays | {"half": "float32 of shape (3, 5)"})
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    tensorstore.KvStore.open(store).result().write(b"weights/0.0", None).result()
    with pytest.raises(OSError, match="read back, weights has 0 of its 1 parts"):
        _check_written(folder, arrays)
    (folder / "manifest.ocdbt").unlink()
    with pytest.raises(OSError, match="read back, "):
        _check_written(folder, arrays)


@pytest.mark.parametrize("error", [RuntimeError("no\nmore"), MemoryError(), KeyError("x"), SystemExit(3)])
@pytest.mark.parametrize("where", ["_check_written", "_sha256"])
def test_whatever_ends_the_writer_is_heard(tmp_path, monkeypatch, error, where):
    def fail(*arguments):
        raise error

    checkpoints = saved(tmp_path, 1)
    monkeypatch.setattr(f"ganstyle_jax.loop.checkpoints.{where}", fail)
    checkpoints.save(2, state_of(2))
    with pytest.raises(UserError, match=r"checkpoint 2 could not be written .*the last good one is step 1") as caught:
        checkpoints.close()
    assert caught.value.__cause__ is error and "\n" not in str(caught.value)
    assert checkpoints.steps() == [1]


def test_what_orbax_raises_at_once_is_heard(tmp_path):
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(UserError, match="checkpoint 2 could not be written"):
        checkpoints.save(2, {"weights": object()})
    checkpoints.close()


def test_a_reader_meets_a_run_that_goes_on(tmp_path, caplog):
    """It finds a whole checkpoint at any time, calls none damaged and touches none."""
    small = {"weights": jnp.arange(6.0)}
    failed, ended = [], threading.Event()
    owner = Checkpoints(tmp_path, keep=1)
    owner.save(1, small)
    owner.wait()

    def read():
        try:
            while not ended.is_set():
                found = Checkpoints(tmp_path).restore(abstract(small))
                assert found is None or found[1]["weights"].shape == (6,)  # None: the only one is written anew
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for step in [2, 3, 3, 4, 4, 5, 6, 7, 8, 8]:
        owner.save(step, small)
        owner.wait()
    ended.set()
    reader.join()
    owner.close()
    assert not failed and "damaged" not in caplog.text
    assert {path.name for path in owner.folder.iterdir()} == {"8", "8.sha256.json"}


@pytest.mark.parametrize("only", [None, 2])
def test_what_is_deleted_while_it_is_read_is_looked_for_again(tmp_path, monkeypatch, caplog, only):
    saved(tmp_path, 1, 2)

    def files(folder, original=checkpoints_module._files):
        if folder.name == "2":
            (tmp_path / "checkpoints" / "2.sha256.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        return original(folder)

    monkeypatch.setattr(checkpoints_module, "_files", files)
    if only:
        with pytest.raises(UserError, match="no checkpoint of step 2: it has 1"):
            Checkpoints(tmp_path).restore(abstract(state_of(0)), 2)
    else:
        assert Checkpoints(tmp_path).restore(abstract(state_of(0)))[0] == 1
    assert "damaged" not in caplog.text


def test_strange_names_are_no_steps(tmp_path):
    checkpoints = saved(tmp_path, 1)
    for name in ("²", "007", "-1", "x", ""):
        (checkpoints.folder / f"{name}.sha256.json").write_text("{}")
    assert Checkpoints(tmp_path).steps() == [1]


# ---------------------------------------------------------------------------------------------------------------------
# A full disk


@pytest.mark.parametrize("seen", ["before", "while writing"])
def test_full_disk_is_one_sentence_and_leaves_what_was_there(small_disk, seen, monkeypatch):
    if seen == "while writing":  # as where a quota, which is not asked for, is the limit
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1 << 40))
    run_dir = small_disk / "run"
    checkpoints = saved(run_dir, 1)
    noise = np.random.default_rng(0).normal(size=2**20).astype(np.float32)  # 4 MiB that do not compress
    with pytest.raises(UserError) as caught:
        checkpoints.save(2, state_of(2) | {"noise": jnp.asarray(noise)})
        checkpoints.wait()
    message = str(caught.value)
    assert "checkpoint 2 could not be written" in message and "the last good one is step 1" in message
    assert "Free some room and run the same command with --resume auto" in message and "\n" not in message
    assert Checkpoints(run_dir).steps() == [1]
    assert digest(Checkpoints(run_dir).restore(abstract(state_of(0)))[1]) == digest(state_of(1))
    # With room again, the same step is written.
    checkpoints.save(2, state_of(2))
    checkpoints.close()
    assert Checkpoints(run_dir).restore(abstract(state_of(0)))[0] == 2
    assert not [p.name for p in (run_dir / "checkpoints").iterdir() if "tmp" in p.name]
