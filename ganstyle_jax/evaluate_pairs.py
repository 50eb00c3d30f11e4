"""How near pictures are to the ones they belong to: `ganstyle evaluate RESULTS --pairs ORIGINALS`.

For restored or compressed pictures the partner is the original (PSNR, SSIM, MS-SSIM, LPIPS), for stylised ones the
content (LPIPS, CFSD, ArtFID). Partners are found by name: that of photo.png is photo.jpg, and so is that of
photo-painting.png, as `ganstyle stylize` names what it makes of two folders.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ganstyle_jax import evaluate, images, pictures, vgg, weights
from ganstyle_jax.files import UserError
from ganstyle_jax.metrics import distances, features, lpips, similarity, style
from ganstyle_jax.metrics.lpips import Kind

PairMetric = Literal["psnr", "psnr_y", "ssim", "ms_ssim", "lpips", "cfsd", "art_fid"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of pictures with a partner each."""

    # folder of the pictures that those of WHAT belong to, by name: originals, or contents of stylised pictures
    pairs: Path | None = None
    # psnr, psnr_y (of the luma), ssim, ms_ssim, lpips; of stylised pictures cfsd, and art_fid with --reference STYLES
    pair_metrics: tuple[PairMetric, ...] = ("psnr", "ssim")
    fit: bool = False  # resize partners to the size of the pictures of WHAT; otherwise other sizes are refused
    border: int = 0  # pixels at each side that psnr_y leaves out, as many as the factor of enlargement
    lpips: Kind = "alex"  # network of LPIPS
    lpips_trunk: str | None = None  # its weights, a file or a name of `ganstyle weights list`; by default torchvision's
    lpips_heads: str | None = None  # the linear heads of LPIPS, likewise; by default the published ones
    cfsd_features: str = "vgg19"  # network of CFSD
    infinity: bool = False  # extrapolate art_fid's FID to infinitely many pictures, from more than 5,000

    def __post_init__(self):
        if self.border < 0:
            raise ValueError(f"border must not be negative, got {self.border}")
        if unknown := [name for name in self.pair_metrics if name not in get_args(PairMetric)]:
            raise ValueError(f"pair_metrics must be of {', '.join(get_args(PairMetric))}, got {unknown[0]!r}")


def run(what: Path, reference: str | None, settings: Settings, others: evaluate.Settings) -> dict[str, Any]:
    """The record of the pictures in folder `what`: means over the pairs, and every pair's own values.

    reference: the styles, for art_fid. others: features and seed, for art_fid. Raises UserError.
    """
    from tqdm import tqdm

    assert settings.pairs is not None
    pairs = partners(pictures_in(what), pictures_in(settings.pairs))
    measures = measures_of(settings)
    rows: list[dict[str, Any]] = []
    for result, partner in tqdm(pairs, desc="pairs", unit="picture", delay=2, leave=False):
        a, b = pictures.read_picture(partner), pictures.read_picture(result)
        if a.shape != b.shape:
            if not settings.fit:
                raise UserError(
                    f"{partner} has {a.shape[1]} x {a.shape[0]} pixels and {result} {b.shape[1]} x {b.shape[0]}: bring "
                    "them to one size, or use --fit, which resizes the first"
                )
            a = np.clip(images.resize(a, b.shape[:2]), -1, 1)
        values = {name: float(measure(a[None], b[None])[0]) for name, measure in measures.items()}
        rows.append({"picture": result.name, "partner": partner.name} | values)
    metrics: dict[str, Any] = {
        name: float(np.mean([row[name] for row in rows])) for name in measures if name in settings.pair_metrics
    }
    protocol: dict[str, Any] = {"pairs": len(rows), "partners": settings.pairs.name, "fit": settings.fit}
    if "psnr_y" in metrics:
        protocol["border"] = settings.border
    if "lpips" in measures:
        protocol["lpips"] = settings.lpips
    if "ms_ssim" in metrics:
        protocol["scales"] = similarity.ms_ssim(a[None], b[None])[1]
    if "art_fid" in settings.pair_metrics:
        more, about = art_fid(pairs, rows, reference, settings, others)
        metrics, protocol = metrics | more, protocol | about
    return {"step": None, "metrics": metrics, "protocol": protocol, "versions": evaluate.versions(), "pairs": rows}


def measures_of(settings: Settings) -> dict[str, Any]:
    """For each metric the function of partners and pictures (1, h, w, 3) in [-1, 1] to (1,); art_fid needs LPIPS."""
    measures: dict[str, Any] = {
        "psnr": similarity.psnr,
        "psnr_y": lambda a, b: similarity.psnr_y(images.to_uint8(a), images.to_uint8(b), settings.border),
        "ssim": similarity.ssim,
        "ms_ssim": lambda a, b: similarity.ms_ssim(a, b)[0],
    }
    wanted = set(settings.pair_metrics)
    if wanted & {"lpips", "art_fid"}:
        wanted.add("lpips")
        measures["lpips"] = lpips.load(settings.lpips, settings.lpips_trunk, settings.lpips_heads)
    if "cfsd" in wanted:
        network, params = weights.load(settings.cfsd_features)
        if not isinstance(network, vgg.VGG):
            raise UserError(
                f"cfsd takes a VGG, and {settings.cfsd_features} is none: run `ganstyle weights fetch vgg19`"
            )
        measures["cfsd"] = lambda a, b: style.cfsd(network, params, a, b)
    return {name: measure for name, measure in measures.items() if name in wanted}


def art_fid(
    pairs: Sequence[tuple[Path, Path]],
    rows: Sequence[dict[str, Any]],
    reference: str | None,
    settings: Settings,
    others: evaluate.Settings,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """ArtFID's figures, and what the protocol says of them."""
    if reference is None or not Path(reference).is_dir():
        raise UserError(
            f"art_fid compares with the pictures of style: give their folder as --reference, not {reference}"
        )
    network = evaluate.network_of(others)
    styles = pictures_in(Path(reference))
    of_styles, of_results = (
        features.extract(network, (images.to_uint8(pictures.read_picture(path))[None] for path in paths), len(paths))[0]
        for paths in (styles, [result for result, _ in pairs])
    )
    found = style.art_fid(
        [row["lpips"] for row in rows],
        distances.gaussian(of_styles),
        of_results,
        [style_of(result, styles) for result, _ in pairs],
        settings.infinity,
        others.seed,
    )
    metrics = {"art_fid": found.art_fid, "lpips": found.lpips, "fid": found.fid}
    # The same picture under several names is one picture.
    different = len({hashlib.sha256(path.read_bytes()).digest() for path in styles})
    about = network.protocol | {
        "fid_infinity": found.infinity,
        "unique_styles": found.unique_styles,
        "styles": Path(reference).name,
        "style_pictures": len(styles),
        "different_style_pictures": different,
    }
    return metrics, about | ({} if found.fid_error is None else {"fid_error": found.fid_error})


def style_of(result: Path, styles: Sequence[Path]) -> str:
    """The style that a result's name ends in; the result's own name where there is none, so that it counts as one."""
    ends = [path.stem for path in styles if result.stem == path.stem or result.stem.endswith(f"-{path.stem}")]
    return max(ends, key=len) if ends else result.name


def partners(results: Sequence[Path], originals: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(result, partner) for each result: of the same name, or with what its name begins with before a hyphen."""
    by_stem: dict[str, Path] = {}
    for path in originals:
        if path.stem in by_stem:
            raise UserError(f"{by_stem[path.stem]} and {path} have the same name: which one is meant cannot be told")
        by_stem[path.stem] = path
    found = []
    for result in results:
        parts = result.stem.split("-")
        names = ["-".join(parts[:n]) for n in range(len(parts), 0, -1)]  # the longest first
        name = next((name for name in names if name in by_stem), None)
        if name is None:
            raise UserError(f"{result} has no partner in {originals[0].parent}: {', '.join(names)} were looked for")
        found.append((result, by_stem[name]))
    return found


def pictures_in(folder: Path) -> list[Path]:
    """Picture files of a folder, sorted. Raises UserError without any."""
    suffixes = pictures.PICTURE_SUFFIXES
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes and path.name[0] != ".")
    if not files:
        raise UserError(f"{folder} is no folder with pictures; accepted are {', '.join(suffixes)}")
    return files


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    width = max(map(len, record["metrics"]))
    lines = [f"{name:{width}}  {evaluate.spelled(value)}" for name, value in record["metrics"].items()]
    told = ", ".join(f"{name} {evaluate.spelled(value)}" for name, value in record["protocol"].items())
    return "\n".join(lines) + f"\n\n{told}"
