"""Mean and covariance of a reference's features in files, as pytorch-fid reads and writes them."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.io.files import UserError, atomic_path, first_line
from ganstyle_jax.judge.metrics.distances import Gaussian
from ganstyle_jax.judge.networks import COLOURS, FeatureNetwork

MAX_BYTES = 2 << 30  # of arrays in a file; covariances of 16,384 features have as many
INCEPTION_DIM = 2048  # of its last pooling layer, FID's features


def save_statistics(path: Path | str, gaussian: Gaussian, network: FeatureNetwork, source: str = "") -> None:
    """Writes mean and covariance as pytorch-fid reads them (.npz with mu and sigma, float64), and their protocol."""
    about = {"count": gaussian.count, **network.protocol, "colours": COLOURS, "source": source}
    arrays: dict[str, Any] = {"mu": gaussian.mean, "sigma": gaussian.covariance}
    arrays |= {key: np.array(value) for key, value in about.items() if value is not None}
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"the statistics cannot be written to {path}: {error.strerror or error}") from error


def load_statistics(path: Path | str, network: FeatureNetwork) -> tuple[Gaussian, dict[str, Any]]:
    """Mean and covariance of a file, and what it says of how they came about: count, features, weights, resize, source.

    What it does not say is "unknown", as all of it is of pytorch-fid's own files. UserError for a file that is none, or
    where it says or shows that its features are not those of `network`.
    """
    try:
        found = _read(Path(path))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read the statistics in {path}: {error.strerror or error}") from error
    except Exception as error:  # NumPy and zipfile raise nearly everything when a file is damaged
        raise UserError(
            f"{path} holds no statistics ({first_line(error)}): a .npz with mu and sigma is needed"
        ) from error
    if not {"mu", "sigma"} <= found.keys():
        raise UserError(f"{path} has {', '.join(found) or 'one array alone'}: a .npz with mu and sigma is needed")
    if any(found[name].dtype.kind not in "fiu" for name in ("mu", "sigma")):
        raise UserError(f"{path} has a mu of {found['mu'].dtype} and a sigma of {found['sigma'].dtype}, and no numbers")
    about = {key: array.item() for key, array in found.items() if key not in ("mu", "sigma") and array.ndim == 0}
    dim = found["mu"].size
    if network.dim is not None and dim != network.dim:
        whose = f", made with {about['features']}," if "features" in about else ""
        remedy = "; those of FID are Inception's: use --features inception" if dim == INCEPTION_DIM else ""
        raise UserError(
            f"{path}{whose} has the statistics of {dim} features, and {network.name} gives {network.dim}: take the "
            f"network that the file was made with, or give the reference's images{remedy}"
        )
    if about.get("resize") == "clean" and "colours" not in about:
        raise UserError(
            f"{path} was made by an earlier version, whose clean resizing did not clip: measure the reference again"
        )
    for key, own in (network.protocol | {"colours": COLOURS}).items():
        if key in about and about[key] != own:
            raise UserError(
                f"{path} was made with {key} {about[key]}, and {network.name} has {own}: measure the reference again"
            )
    count = about["count"] if isinstance(about.get("count"), int) else None
    gaussian = Gaussian(found["mu"].astype(np.float64), found["sigma"].astype(np.float64), count)
    return gaussian, {key: about.get(key, "unknown") for key in ("count", "features", "weights", "resize", "source")}


def is_statistics(path: Path | str) -> bool:
    """Whether a file is an .npz with mu and sigma."""
    try:
        with zipfile.ZipFile(path) as file:
            return {"mu.npy", "sigma.npy"} <= set(file.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, or nothing of an .npy; UserError for more than it is safe to unpack."""
    with open(path, "rb") as opened:
        if zipfile.is_zipfile(opened):
            with zipfile.ZipFile(opened) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > MAX_BYTES:
                raise UserError(
                    f"{path} unpacks to {unpacked / 2**30:.1f} GiB, and at most {MAX_BYTES >> 30} GiB are read: "
                    "a .npz with mu and sigma is needed"
                )
        opened.seek(0)
        file = np.load(opened, allow_pickle=False)
        return dict(file) if isinstance(file, np.lib.npyio.NpzFile) else {}
