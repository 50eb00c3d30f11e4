"""What `ganstyle evaluate` and training's evaluations measure, and in which way."""

import dataclasses
from typing import Literal, get_args

from ganstyle_jax.judge import networks
from ganstyle_jax.judge.resizing import Resize

Metric = Literal[
    "fid", "kid", "inception_score", "precision_recall", "density_coverage", "sliced_wasserstein", "ms_ssim", "glyphs"
]
METRICS: tuple[Metric, ...] = get_args(Metric)
OF_EACH_IMAGE = {"kid", "inception_score", "precision_recall", "density_coverage"}  # want the features of each
OF_PIXELS = {"sliced_wasserstein", "ms_ssim"}  # want the images themselves


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and in which way."""

    # fid, kid: distances to the real images; precision_recall, density_coverage: quality and variety apart;
    # inception_score; sliced_wasserstein: of patches, by scale; ms_ssim: likeness of pairs, low where there is variety;
    # glyphs: which characters are drawn, how evenly, and how many are unreadable
    metrics: tuple[Metric, ...] = ("fid", "kid", "precision_recall", "density_coverage")
    # network whose features are compared: inception, compact, vgg19:relu3_4 or others of `ganstyle weights list`, with
    # a layer, or FILE.py:FUNCTION; auto: inception if it is here, else compact
    features: str = "auto"
    # how images get the size that the network takes: as clean-fid, TensorFlow 1 or pytorch-fid do, or not at all
    resize: Resize | None = None
    count: int = 10_000  # generated images, if there are so many
    real_count: int = 10_000  # real images, if there are so many
    seed: int = 0  # of the latents, of the choice of images, and of KID's subsets

    def __post_init__(self):
        for name in ("count", "real_count"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if not self.metrics:
            raise ValueError("metrics must be one or more, got none")
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f"metrics must be of {', '.join(METRICS)}, got {unknown[0]!r}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")


def network_of(settings: Settings) -> networks.FeatureNetwork:
    """The network that the settings name. UserError where its weights are not here."""
    spec = networks.default() if settings.features == "auto" else settings.features
    return networks.feature_network(spec, settings.resize)
