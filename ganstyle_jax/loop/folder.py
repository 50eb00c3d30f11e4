"""run.json: what a run is, written before its first step, and what it must have in common with the one that goes on.

method          its name among the built-in ones, or "my_gan.py"; earlier versions: "method.py", beside run.json
method_files    the SHA-256 of the user's file and of the neighbours that it imports, which are kept in method/
config          the method's settings;  loop: those of training
data            what was given for it, {source: text}, or the text where there is one source
data_identity   {source: what tells the set from another one}, see identity.py
label_names     of a conditional method {source: the names of its classes}
changes         [{"step": 100, "what": ["batch_size was 64 and is 128"]}], what was changed on the way
versions, devices, processes
"""

import importlib.metadata
import json
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from ganstyle_jax import __version__, builtin, contract
from ganstyle_jax.contract import Method
from ganstyle_jax.data import Source
from ganstyle_jax.io.files import UserError, atomic_path, first_line
from ganstyle_jax.loop.identity import identity_of, same_data
from ganstyle_jax.method_file import files_of, sha256

DEEPEST = 20  # levels of JSON


def describe(
    method: ModuleType | Method,
    cfg: Any,
    data: str | Mapping[str, str],
    loop: Any,
    found: Mapping[str, Source] | None = None,
) -> dict:
    """The contents of run.json. found: the sources, open, in the order of `data`."""
    method = contract.of(method)
    files = {} if method.file is None else files_of(method.file)
    identity = {name: identity_of(_text(data, name), source) for name, source in (found or {}).items()}
    names = {name: list(source.label_names) for name, source in (found or {}).items() if source.label_names}
    return {
        "method": method.name,
        **({"method_files": {name: sha256(file) for name, file in files.items()}} if files else {}),
        "config": contract.to_json(cfg),
        "data": data if isinstance(data, str) else dict(data),
        **({"data_identity": identity} if identity else {}),
        **({"label_names": names} if names and getattr(cfg, "conditional", False) else {}),
        "loop": contract.to_json(loop),
    } | surroundings()


def surroundings() -> dict:
    """What run.json tells of the program and the machine: "versions", "devices" and "processes"."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "versions": {"ganstyle_jax": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }


def write(run_dir: Path, method: ModuleType | Method, description: dict) -> None:
    """run.json and, for a method of the user's own, its files in method/. What was changed earlier stays noted."""
    run_dir = Path(run_dir)
    try:
        before = read(run_dir) if (run_dir / "run.json").exists() else {}
        if "method_files" in description:
            file = contract.of(method).file
            assert file is not None
            _keep(files_of(file), description["method_files"], before.get("method_files", {}), run_dir / "method")
        if "changes" in before and "changes" not in description:
            description = description | {"changes": before["changes"]}
        _write_json(run_dir, description)
    except OSError as error:
        raise UserError(f"the run folder {run_dir} cannot be written: {error.strerror or error}") from error


def deeper(value: Any, levels: int) -> bool:
    """Whether JSON is nested in more levels than that, which nothing is that this package writes."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(parts) and (levels == 0 or any(deeper(part, levels - 1) for part in parts))


def record_changes(run_dir: Path, step: int, changes: list[str]) -> None:
    """Notes in run.json that the run goes on from `step` with other settings."""
    if not changes:
        return
    description = read(run_dir)
    before = description.get("changes")
    before = before if isinstance(before, list) else []
    try:
        _write_json(Path(run_dir), description | {"changes": [*before, {"step": step, "what": list(changes)}]})
    except OSError as error:
        raise UserError(f"the run folder {run_dir} cannot be written: {error.strerror or error}") from error


def read(run_dir: Path | str) -> dict:
    """The contents of run.json, of this version or an earlier one; UserError if there are none."""
    path = Path(run_dir) / "run.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run_dir} is not a run folder: it holds no run.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    parts = {"method": str, "config": dict, "data": (str, dict), "loop": dict}
    sound = isinstance(description, dict) and all(isinstance(description.get(k), t) for k, t in parts.items())
    if not sound or deeper(description, DEEPEST):
        raise UserError(f"{path} does not describe a run: {', '.join(parts)} were expected")
    data, name = description["data"], description["method"]
    if isinstance(data, dict) and not all(isinstance(text, str) for text in data.values()):
        raise UserError(f'{path} does not describe a run: "data" has something else than texts')
    if Path(name).name != name:  # it names a file in this folder, and none elsewhere is to be executed
        raise UserError(f'{path} does not describe a run: "method" is {name!r}, and no name')
    for part in ("method_files", "data_identity", "label_names"):
        if not isinstance(description.get(part, {}), dict):
            raise UserError(f'{path} does not describe a run: "{part}" is no object')
    return description


def previous(run_dir: Path, resume: str) -> dict | None:
    """What run.json says of the run that may go on here, None in a new folder; UserError if none may.

    resume: "never", "auto" or "required", as in Loop.
    """
    run_dir = Path(run_dir)
    if (run_dir / "run.json").exists():
        if resume != "required" and not _has_begun(run_dir):
            return None  # a mistake in the method, say, ended it before the first step: nothing is lost
        if resume == "never":
            raise UserError(
                f"{run_dir} already holds a run: choose another --run-dir, or --resume auto to go on with it"
            )
        return read(run_dir)
    kept = sorted(path.name for path in (run_dir / "checkpoints").glob("*"))
    left = [f"checkpoints ({', '.join(name for name in kept if name.isdecimal()) or kept[0]})"] if kept else []
    left += ["metrics.jsonl"] if (run_dir / "metrics.jsonl").exists() else []
    if left:
        raise UserError(
            f"{run_dir} holds {' and '.join(left)}, but no run.json, which says of what run they are: put it back, or "
            "choose another --run-dir"
        )
    if resume == "required":
        raise UserError(f"{run_dir} holds no run to resume; use --resume auto to begin where there is none")
    return None


def _has_begun(run_dir: Path) -> bool:
    """Whether a run has left anything but its description."""
    logged = run_dir / "metrics.jsonl"
    return any((run_dir / "checkpoints").glob("*")) or (logged.exists() and logged.stat().st_size > 0)


def completed(run_dir: Path | str, description: dict, method: Method) -> Any:
    """The config of a run, of this version or an earlier one: what that lacks is as by default, and said in one line.

    UserError naming a field that no longer exists or a value that is refused.
    """
    try:
        cfg, lacking = contract.complete(method.config, description["config"])
    except UserError as error:
        raise UserError(f"{Path(run_dir) / 'run.json'} is of another version of {method.name}: {error}") from error
    if lacking:
        values = ", ".join(f"{name} {getattr(cfg, name)!r}" for name in lacking)
        print(f"{run_dir} is of a version that did not have {values}: as by default", file=sys.stderr, flush=True)
    return cfg


def check_same(run_dir: Path, old: dict, new: dict, method: Method, allow_changes: bool = False) -> list[str]:
    """What differs between the run in a folder and the one that is to go on with it; see `differences`.

    UserError if anything does and `allow_changes` is off. Says which settings the run lacked.
    """
    if old["method"] in (new["method"], "method.py"):  # another one has another config, and is told of below
        old = old | {"config": contract.to_json(completed(run_dir, old, method))}
    changes = differences(_with_file(run_dir, old), new)
    if changes and not allow_changes:
        raise UserError(
            f"{run_dir} holds another run: {'; '.join(changes)}. Choose another --run-dir or the same settings, or "
            "--allow-changes to go on with these"
        )
    return changes


def differences(old: dict, new: dict) -> list[str]:
    """What makes two descriptions different runs, in words: method, its files, data, config, seed and batch size."""
    new = json.loads(json.dumps(new))
    found = []

    def compare(name: str, before: Any, after: Any) -> None:
        if before != after and json.dumps(before) != json.dumps(after):  # the latter for NaN
            found.append(f"{name} was {before!r} and is {after!r}")

    files = old.get("method_files", {}), new.get("method_files", {})
    own = [part.get(description["method"]) for part, description in zip(files, (old, new), strict=True)]
    if not all(own):
        compare("method", old["method"], new["method"])
    elif own[0] != own[1] and old["method"] not in (new["method"], "method.py"):
        found.append(f"method was {old['method']!r} and is {new['method']!r}, another file")
    elif own[0] != own[1]:
        found.append(f"the method's file {new['method']} is another one than before")
    others = [{k: v for k, v in part.items() if k != d["method"]} for part, d in zip(files, (old, new), strict=True)]
    if old["method"] != "method.py":  # of which an earlier version kept no neighbours
        for name in sorted(others[0] | others[1]):
            if others[0].get(name) != others[1].get(name):
                now = "is missing" if name not in others[1] else "is new"
                both = name in others[0] and name in others[1]
                found.append(f"{name}, which the method imports, {'is another file than before' if both else now}")

    found += _other_data(old, new)
    configs = old["config"] | new["config"] if all(own) or old["method"] == new["method"] else {}
    for name in sorted(configs):  # of another method they are others anyway
        compare(name, old["config"].get(name), new["config"].get(name))
    for name in ("batch_size", "seed"):
        if name in old["loop"]:
            compare(name, old["loop"][name], new["loop"].get(name))
    return found


def method_of(run_dir: Path | str, description: dict) -> Method:
    """The method of a run, from its own copy where it was a file; UserError where it can no longer be had."""
    name, run_dir = description["method"], Path(run_dir)
    _known(run_dir, description)
    if not name.endswith(".py"):
        return contract.find(name)
    path = next((p for p in (run_dir / "method" / name, run_dir / name) if p.is_file()), None)
    if path is None:
        raise UserError(f"{run_dir} has lost its method: {name} is neither in {run_dir / 'method'} nor beside run.json")
    sums = description.get("method_files", {})
    changed = [name for name in sums if not (path.parent / name).is_file() or sha256(path.parent / name) != sums[name]]
    if changed:
        what = ", ".join(sorted(changed))
        print(f"{path.parent}: {what} changed since the run was trained", file=sys.stderr, flush=True)
    return contract.find(path)


def label_names(description: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes that a run is conditional on, by its label; () where none are noted."""
    for names in description.get("label_names", {}).values():  # a method is conditional on one source's
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


# ---------------------------------------------------------------------------------------------------------------------


def _text(data: str | Mapping[str, str], name: str) -> str:
    return data if isinstance(data, str) else data[name]


def _known(run_dir: Path, description: dict) -> None:
    name = description["method"]
    if not name.endswith(".py") and name not in builtin.EVERY:
        raise UserError(
            f"{run_dir} was made by {name!r}, which this version does not have and of which it holds no file: built in "
            f"are {', '.join(builtin.EVERY)}"
        )


def _with_file(run_dir: Path, old: dict) -> dict:
    """With the sum of method.py, of which an earlier version took none."""
    path = Path(run_dir) / old["method"]
    if "method_files" in old or not old["method"].endswith(".py") or not path.is_file():
        return old
    return old | {"method_files": {old["method"]: sha256(path)}}


def _other_data(old: dict, new: dict) -> list[str]:
    texts = [d["data"] if isinstance(d["data"], dict) else None for d in (old, new)]
    if texts[0] is None and texts[1] is None:
        identities = [next(iter(d.get("data_identity", {}).values()), {}) for d in (old, new)]
        pairs = {"data": (old["data"], new["data"], *identities)}
    else:
        before, after = ({"": d["data"]} if t is None else t for d, t in zip((old, new), texts, strict=True))
        if set(before) != set(after):
            return [f"data was {old['data']!r} and is {new['data']!r}"]
        sets = [d.get("data_identity", {}) for d in (old, new)]
        pairs = {f"data {n}": (before[n], after[n], sets[0].get(n, {}), sets[1].get(n, {})) for n in before}

    def told(text: str, identity: dict) -> str:
        count = identity.get("images")
        return f"{text!r} ({count:,} pictures)" if isinstance(count, int) else repr(text)

    found = []
    for name, (before, after, was, now) in pairs.items():
        was, now = (x if isinstance(x, dict) else {} for x in (was, now))
        if not same_data(was, now, before, after):
            other = "" if before != after else ", with other contents"
            found.append(f"{name} was {told(before, was)} and is {told(after, now)}{other}")
    return found


def _keep(files: dict[str, Path], sums: dict[str, str], before: dict[str, Any], folder: Path) -> None:
    """Copies the method's files, and removes those of before that it no longer has."""
    for name, file in files.items():
        if sha256(file) != sums.get(name):
            raise UserError(f"{file} was changed while the run began: start it again")
        if file.resolve() != (folder / name).resolve():
            with atomic_path(folder / name) as path:
                shutil.copyfile(file, path)
    for name in set(before) - set(files):
        if (folder / name).resolve().is_relative_to(folder.resolve()):
            (folder / name).unlink(missing_ok=True)


def _write_json(run_dir: Path, description: dict) -> None:
    with atomic_path(run_dir / "run.json") as path:
        path.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
