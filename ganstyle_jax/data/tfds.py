"""TFDS: prepared sets are read without TensorFlow; preparing them needs it, and a network."""

import difflib
import json
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.data import encoded
from ganstyle_jax.data.open import KINDS
from ganstyle_jax.data.source import Size, Source
from ganstyle_jax.io.files import UserError, first_line, listed

PREPARE = "pip install -e '.[tfds-prepare]' && ganstyle data prepare {name}"


def source(spec: str, image_size: Size, channels: int | None) -> Source:
    """What `data.open_source` makes of tfds:NAME[/CONFIG][:SPLIT]."""
    name, _, split = spec.removeprefix("tfds:").partition(":")
    split = split or "train"
    folder = _tfds_folder(name)
    info = _info(folder)
    if not _has_array_records(folder):
        raise UserError(
            f"{folder} is prepared as {info.get('fileFormat', 'an old format')}, which has no random access, and not "
            f"as array_record: move that folder away and run {PREPARE.format(name=name)}"
        )
    tfds = _import_tfds(name)
    try:
        builder = tfds.builder_from_directory(folder)
        features: Any = builder.info.features
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        if not images:
            raise UserError(f"{spec} has no image feature: it has {listed(list(features))}. Choose a set of images.")
        key = "image" if "image" in images else images[0]
        if features[key].np_dtype == np.float32:
            raise UserError(f"{spec} keeps floats in its feature {key!r}, which is not an image file: accepted are "
                            "8 and 16 bits.")  # fmt: skip
        classes = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        label_key = "label" if "label" in classes else classes[0] if classes else None
        skip = {k: tfds.decode.SkipDecoding() for k in images}  # Pillow decodes, as for files, and only what is used
        records = builder.as_data_source(split, decoders=skip)
        size = len(records)
    except UserError:
        raise
    except Exception as error:
        splits = listed([s.get("name") for s in info.get("splits", []) if isinstance(s, dict)])
        raise UserError(f"Cannot open the split {split!r} of {folder} ({error}): it has {splits}.") from error
    if not size:
        raise UserError(f"The split {split!r} of {folder} is empty: choose another one.")

    def load(i: int, most: int | None = None) -> tuple[bytes, int | None]:
        record = records[i]
        label = None if label_key is None else int(record[label_key])
        return record[key][:most], label

    label_names = None if label_key is None else tuple(features[label_key].names)
    return encoded.source(spec, size, lambda i: f"{spec} record {i}", load, label_names, image_size, channels)


def _tfds_folder(name: str) -> Path:
    """The newest prepared version of NAME or NAME/CONFIG; UserError with what to do where there is none."""
    root = _tfds_root()
    if re.fullmatch(r"\w+(/[\w.+-]+)?", name):
        if found := _tfds_versions(root / name):
            return found[-1]
        configs = sorted(p for p in (root / name).glob("*") if _tfds_versions(p))
        if len(configs) == 1:
            return _tfds_versions(configs[0])[-1]
        if configs:
            choices = listed([f"tfds:{name}/{p.name}" for p in configs])
            raise UserError(f"tfds:{name} is prepared in several configurations, choose one: {choices}.")
    _check_tfds_name(name)
    raise UserError(
        f"The TFDS set {name!r} is not prepared in {root}: run {PREPARE.format(name=name)} once, where there is a "
        f"network, or set TFDS_DATA_DIR to where it lies. Without TFDS: {KINDS.replace(' tfds:NAME,', '')}."
    )


def _tfds_root() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _tfds_versions(folder: Path) -> list[Path]:
    """The prepared versions in a folder, oldest first."""
    found = [p for p in folder.glob("*.*.*") if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    found = [p for p in found if (p / "dataset_info.json").is_file()]
    return sorted(found, key=lambda p: tuple(map(int, p.name.split("."))))


def _has_array_records(folder: Path) -> bool:
    info = _info(folder)
    return "array_record" in (info.get("fileFormat"), *info.get("alternativeFileFormats", []))


def _info(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): prepare the set again.") from error
    if not isinstance(info, dict):
        raise UserError(f"{path} is not what TFDS writes: prepare the set again.")
    return info


def _check_tfds_name(name: str) -> None:
    """UserError for a name that TFDS does not know, with those that are like it."""
    tfds = _import_tfds(name)
    known = tfds.list_builders(with_community_datasets=False)  # a list in the package, no network
    base = name.split("/")[0]
    if base not in known:
        close = difflib.get_close_matches(re.sub(r"\W+", "_", base.lower()), known, n=4, cutoff=0.5)
        advice = f"did you mean {' or '.join(close)}?" if close else "see tensorflow.org/datasets/catalog."
        raise UserError(f"TFDS knows no set {base!r}: {advice}")


def _import_tfds(name: str) -> Any:
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"tfds:{name} needs a package that cannot be imported ({error}): run "
            "pip install tensorflow-datasets array-record"
        ) from error
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS reports each folder it opens
    return tensorflow_datasets


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Downloads a TFDS set and writes it as ArrayRecord, for `tfds:NAME`; returns its folder.

    name: NAME or NAME/CONFIG. data_dir: TFDS_DATA_DIR, or else ~/tensorflow_datasets. Needs TensorFlow and a network.
    A set that is there already is left as it is. Raises UserError.
    """
    name = name.removeprefix("tfds:")
    root = Path(data_dir).expanduser() if data_dir else _tfds_root()
    if found := _tfds_versions(root / name):
        if _has_array_records(found[-1]):
            return found[-1]
        raise UserError(
            f"{found[-1]} is prepared in another format than array_record: move that folder away, or choose another "
            "data_dir, and run the command again."
        )
    _check_tfds_name(name)
    _require_network("https://storage.googleapis.com", name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow  # noqa: F401  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        import tensorflow_datasets as tfds
    except ImportError as error:
        command = PREPARE.format(name=name)
        raise UserError(
            f"Preparing {name!r} needs TensorFlow, which cannot be imported ({error}): run {command}"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # its downloads, its builders and what they import fail in many ways
        raise UserError(f"TFDS could not prepare {name!r} in {root}: {error}") from error
    return Path(builder.data_dir)


def _require_network(address: str, name: str, seconds: float = 5) -> None:
    """UserError unless a web server answers; TFDS would retry for minutes, and a name lookup has no time limit."""
    import urllib.error
    import urllib.request

    failure: list[str] = ["no answer"]

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
            failure.clear()
        except urllib.error.HTTPError:
            failure.clear()  # an answer
        except Exception as error:
            failure[0] = str(getattr(error, "reason", error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    if failure:
        raise UserError(
            f"Preparing {name!r} needs a network, and {address} cannot be reached ({failure[0]}): run the command "
            "where it can and copy the folder, or use a folder of images, a zip, an .npz file or glyphs."
        )
