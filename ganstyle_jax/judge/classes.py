"""How good a conditional generator is class by class: FID and KID of each against real pictures of that class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ganstyle_jax.io.files import UserError, listed
from ganstyle_jax.judge.metrics import distances
from ganstyle_jax.judge.seen import Seen
from ganstyle_jax.judge.settings import Settings

FEWEST = 10  # pictures of a class, real ones and generated ones, of which distances are taken
METRICS = ("fid", "kid")


def by_class(
    real: Seen, fake: Seen, real_labels: np.ndarray, fake_labels: np.ndarray, names: Sequence[str], settings: Settings
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """{class: {"real": count, "generated": count, "fid": ..., "kid": ..., "kid_spread": ...}}, and what to warn of.

    Labels (n,) and (m,) are of the pictures that were looked at, places in `names`. A class with fewer than FEWEST
    pictures on either side has its counts alone. Of KID's subsets each is half of a class, and 1,000 pictures at most.
    Raises UserError where no metric of classes is asked for, and where the features of each picture are not known.
    """
    wanted = [metric for metric in METRICS if metric in settings.metrics]
    if not wanted:
        raise UserError(f"--per-class measures {' and '.join(METRICS)}, got --metrics {' '.join(settings.metrics)}")
    if real.features is None or fake.features is None:
        raise UserError(
            "--per-class wants the features of each image: add kid to --metrics, and give images for --reference and "
            "no file of statistics"
        )
    found: dict[str, dict[str, Any]] = {}
    few, lean = [], []
    for label, name in enumerate(names):
        of_real, of_fake = real.features[real_labels == label], fake.features[fake_labels == label]
        numbers: dict[str, Any] = {"real": len(of_real), "generated": len(of_fake)}
        found[name] = numbers
        if min(len(of_real), len(of_fake)) < FEWEST:
            few.append(name)
            continue
        if "fid" in wanted:
            numbers["fid"] = distances.frechet_distance(distances.gaussian(of_real), distances.gaussian(of_fake))
            if min(len(of_real), len(of_fake)) <= of_real.shape[1]:
                lean.append(name)
        if "kid" in wanted:
            size = min(1000, len(of_real) // 2, len(of_fake) // 2)
            mean, spread = distances.kid(of_real, of_fake, subset_size=size, seed=settings.seed)
            numbers |= {"kid": mean, "kid_spread": spread}
    warnings = []
    if few:
        warnings.append(
            f"classes with fewer than {FEWEST} real or generated pictures have no distances: {listed(few)}. Raise "
            "--count and --real-count"
        )
    if lean:
        warnings.append(
            f"FID by class compares the covariances of {real.features.shape[1]:,} features, and the classes "
            f"{listed(lean)} have no more pictures than that: it comes out too high, by more the fewer there are. "
            "Compare classes by kid, which has no such bias, or raise --count and --real-count"
        )
    return found, warnings
