"""`ganstyle data`: sets of TensorFlow Datasets, made ready."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Data:
    """Download a TensorFlow data set as ArrayRecord, for `--data tfds:NAME`. Needs a network and TensorFlow."""

    action: tyro.conf.Positional[Literal["prepare"]]  # download and convert
    name: tyro.conf.Positional[str]  # such as mnist, cifar10, celeb_a
    data_dir: Path | None = None  # where to; by default where TFDS looks, ~/tensorflow_datasets


def run(command: Data) -> None:
    from ganstyle_jax import data

    folder = data.prepare(command.name, command.data_dir)
    print(f"{command.name} is ready in {folder}: train with --data tfds:{command.name}")
