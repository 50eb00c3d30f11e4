"""How near pictures are to the ones they belong to: `ganstyle evaluate RESULTS --pairs ORIGINALS`.

For restored or compressed pictures the partner is the original (PSNR, SSIM, MS-SSIM, LPIPS), for stylised ones the
content (LPIPS, CFSD, ArtFID). Partners are found by name: that of photo.png is photo.jpg, and so is that of
photo-painting.png, as `ganstyle stylize` names what it makes of two folders. Other names are told by a pattern:
`--pairs-pattern {}_x4.png` for photo_x4.png of photo.png, `{}_restored {}_gt` for photo_restored.png of photo_gt.png.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import compare, features
from ganstyle_jax.judge import settings as of_sets
from ganstyle_jax.judge.metrics import distances, lpips, similarity, style
from ganstyle_jax.judge.metrics.lpips import Kind

log = logging.getLogger(__name__)
PairMetric = Literal["psnr", "psnr_y", "ssim", "ssim_y", "ms_ssim", "lpips", "cfsd", "art_fid"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of pictures with a partner each."""

    # folder of the pictures that those of WHAT belong to, by name: originals, or contents of stylised pictures
    pairs: Path | None = None
    # psnr, ssim, both of the luma as psnr_y and ssim_y, ms_ssim, lpips; of stylised pictures cfsd, and art_fid with
    # --reference STYLES
    pair_metrics: tuple[PairMetric, ...] = ("psnr", "ssim")
    fit: bool = False  # resize partners to the size of the pictures of WHAT; otherwise other sizes are refused
    border: int = 0  # pixels at each side that psnr_y and ssim_y leave out, as many as the factor of enlargement
    lpips: Kind = "alex"  # network of LPIPS
    lpips_trunk: str | None = None  # its weights, a file or a name of `ganstyle weights list`; by default torchvision's
    lpips_heads: str | None = None  # the linear heads of LPIPS, likewise; by default the published ones
    cfsd_features: str = "vgg19"  # network of CFSD
    infinity: bool = False  # extrapolate art_fid's FID to infinitely many pictures, from more than 5,000
    # how pictures of WHAT are named, and if two are given those of PAIRS: {} stands for what both share, by default a
    # partner's name without its suffix; {}_x4.png, or {}_restored.png {}_gt.png. Pictures of other names are left out
    pairs_pattern: tuple[str, ...] = ()

    def __post_init__(self):
        if self.border < 0:
            raise ValueError(f"border must not be negative, got {self.border}")
        if len(self.pairs_pattern) > 2:
            raise ValueError(f"pairs_pattern takes one pattern or two, got {len(self.pairs_pattern)}")
        if wrong := [pattern for pattern in self.pairs_pattern if pattern.count("{}") != 1]:
            raise ValueError(f"pairs_pattern must have {{}} once, such as {{}}_x4.png, got {wrong[0]!r}")
        if unknown := [name for name in self.pair_metrics if name not in get_args(PairMetric)]:
            raise ValueError(f"pair_metrics must be of {', '.join(get_args(PairMetric))}, got {unknown[0]!r}")


def run(what: Path | str, reference: str | None, settings: Settings, others: of_sets.Settings) -> dict[str, Any]:
    """The record of the pictures in folder `what`: means over the pairs, and every pair's own values.

    reference: the styles, for art_fid. others: features and seed, for art_fid. Raises UserError.
    """
    from tqdm import tqdm

    assert settings.pairs is not None
    folders = Path(what), Path(settings.pairs)
    pairs = partners(pictures_in(folders[0]), pictures_in(folders[1]), folders, settings.pairs_pattern)
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
        names = (_place(path, folder).as_posix() for path, folder in zip((result, partner), folders, strict=True))
        rows.append(dict(zip(("picture", "partner"), names, strict=True)) | values)
    metrics: dict[str, Any] = {
        name: float(np.mean([row[name] for row in rows])) for name in measures if name in settings.pair_metrics
    }
    protocol: dict[str, Any] = {"pairs": len(rows), "partners": folders[1].name, "fit": settings.fit}
    if {"psnr_y", "ssim_y"} & metrics.keys():
        protocol["border"] = settings.border
    if "lpips" in measures:
        protocol["lpips"] = settings.lpips
    if "ms_ssim" in metrics:
        protocol["scales"] = similarity.ms_ssim(a[None], b[None])[1]
    record = {"step": None, "metrics": metrics, "protocol": protocol, "versions": compare.versions(), "pairs": rows}
    if "art_fid" in settings.pair_metrics:
        more, about, few = art_fid(pairs, rows, reference, settings, others)
        record |= {"metrics": metrics | more, "protocol": protocol | about}
        if few is not None:
            log.warning(few)
            record["warnings"] = [few]
    return record


def measures_of(settings: Settings) -> dict[str, Any]:
    """For each metric the function of partners and pictures (1, h, w, 3) in [-1, 1] to (1,); art_fid needs LPIPS."""
    measures: dict[str, Any] = {
        "psnr": similarity.psnr,
        "psnr_y": lambda a, b: similarity.psnr_y(images.to_uint8(a), images.to_uint8(b), settings.border),
        "ssim": similarity.ssim,
        "ssim_y": lambda a, b: similarity.ssim_y(images.to_uint8(a), images.to_uint8(b), settings.border),
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
    others: of_sets.Settings,
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """ArtFID's figures, what the protocol says of them, and what to warn of."""
    if reference is None or not Path(reference).is_dir():
        raise UserError(
            f"art_fid compares with the pictures of style: give their folder as --reference, not {reference}"
        )
    network = of_sets.network_of(others)
    styles = pictures_in(Path(reference))
    of_styles, of_results = (
        features.extract(network, (images.to_uint8(pictures.read_picture(path))[None] for path in paths), len(paths))[0]
        for paths in (styles, [result for result, _ in pairs])
    )
    styles_gaussian = distances.gaussian(of_styles)
    found = style.art_fid(
        [row["lpips"] for row in rows],
        styles_gaussian,
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
    few = compare.warning_of_few(styles_gaussian, len(pairs), "give more pictures")
    return metrics, about | ({} if found.fid_error is None else {"fid_error": found.fid_error}), few


def style_of(result: Path, styles: Sequence[Path]) -> str:
    """The style that a result's name ends in; the result's own name where there is none, so that it counts as one."""
    ends = [path.stem for path in styles if result.stem == path.stem or result.stem.endswith(f"-{path.stem}")]
    return max(ends, key=len) if ends else result.name


def partners(
    results: Sequence[Path],
    originals: Sequence[Path],
    folders: tuple[Path, Path] | None = None,
    patterns: Sequence[str] = (),
) -> list[tuple[Path, Path]]:
    """(result, partner) for each result: of the same name, or with what its name begins with before a hyphen.

    folders: of the results and of the originals. A partner at the same place below its folder is preferred to others of
    its name. patterns: see `Settings.pairs_pattern`; results that do not fit the first are passed over. Raises
    UserError for a result without a partner, and for one with several.
    """
    roots = folders or (results[0].parent, originals[0].parent)
    if patterns:
        return _by_pattern(results, originals, roots, *(*patterns, "{}")[:2])
    by_place: dict[Path, list[Path]] = {}
    by_stem: dict[str, list[Path]] = {}
    for path in originals:
        by_place.setdefault(_place(path, roots[1]).with_suffix(""), []).append(path)
        by_stem.setdefault(path.stem, []).append(path)
    found = []
    for result in results:
        parts = result.stem.split("-")
        names = ["-".join(parts[:n]) for n in range(len(parts), 0, -1)]  # the longest first
        here = _place(result, roots[0]).parent
        there = (by_place.get(here / name) or by_stem.get(name) for name in names)
        candidates = next((paths for paths in there if paths), None)
        if candidates is None:
            raise UserError(f"{result} has no partner in {roots[1]}: {', '.join(names)} were looked for")
        found.append((result, _only(candidates, result)))
    return found


def _by_pattern(
    results: Sequence[Path], originals: Sequence[Path], roots: tuple[Path, Path], of_result: str, of_partner: str
) -> list[tuple[Path, Path]]:
    by_name: dict[str, list[Path]] = {}
    for path in originals:
        if (name := _fitting(_place(path, roots[1]), of_partner)) is not None:
            by_name.setdefault(name, []).append(path)
    named = [(result, _fitting(_place(result, roots[0]), of_result)) for result in results]
    taken = [(result, name) for result, name in named if name is not None]
    if not taken:
        raise UserError(f"none of the {len(results):,} pictures in {roots[0]} is named as --pairs-pattern {of_result}")
    if len(taken) < len(results):
        log.info("%d of %d pictures in %s are named as %s", len(taken), len(results), roots[0], of_result)
    for result, name in taken:
        if name not in by_name:
            raise UserError(f"{result} has no partner in {roots[1]}: {of_partner.replace('{}', name)} was looked for")
    return [(result, _only(by_name[name], result)) for result, name in taken]


def _fitting(place: Path, pattern: str) -> str | None:
    """What {} of a pattern stands for in a file's place, with or without its suffix; None where it does not fit."""
    before, _, after = pattern.partition("{}")
    for text in (place.as_posix(), place.with_suffix("").as_posix()):
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
            name = text[len(before) : len(text) - len(after)]
            # Of a pattern without a suffix, {} is to be the name, and not the name with its suffix.
            if after or text != place.as_posix():
                return name
    return None


def _only(candidates: Sequence[Path], result: Path) -> Path:
    if len(candidates) > 1:
        raise UserError(
            f"{candidates[0]} and {candidates[1]} have the same name: which of them {result} belongs to cannot be told"
        )
    return candidates[0]


def _place(path: Path, folder: Path) -> Path:
    """Below its folder."""
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def pictures_in(folder: Path) -> list[Path]:
    """Picture files below a folder, sorted. Raises UserError without any."""
    files = pictures.pictures_in(folder) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} is no folder with pictures; accepted are {', '.join(pictures.suffixes())}")
    return files


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    width = max(map(len, record["metrics"]))
    lines = [f"{name:{width}}  {compare.spelled(value)}" for name, value in record["metrics"].items()]
    told = ", ".join(f"{name} {compare.spelled(value)}" for name, value in record["protocol"].items())
    return "\n".join(lines) + f"\n\n{told}"
