"""How long a run is, and where and on what devices it goes on."""

import dataclasses
from pathlib import Path
from typing import Literal

from ganstyle_jax.judge import evaluate


@dataclasses.dataclass(frozen=True)
class Loop:
    """How long a run is, and where and on what devices it goes on."""

    run_dir: Path | None = None  # folder for all that the run leaves; by default runs/<method>
    steps: int = 10_000  # training steps
    batch_size: int = 64  # images of the global batch, over all devices
    seed: int = 0  # decides the weights, the order of the data and every random draw
    resume: Literal["never", "auto", "required"] = "never"  # auto: go on from the last checkpoint, if there is one
    # go on with --resume although settings differ, such as the batch size or a rate; what changed is kept in run.json
    allow_changes: bool = False
    init_from: Path | None = None  # run folder whose weights to begin with; optimizer and step start anew
    parallel: Literal["jit", "pmap"] = "jit"  # how the step is spread over the devices
    # each device keeps its part of the weights and of the optimizer's state, and fetches the rest when it needs it
    # (fully sharded data parallelism): for networks too large for one device
    shard_state: bool = False
    # devices that have the state between them with shard_state; by default all. With fewer, each group of so many has
    # all of it: the more groups, the less is fetched from far away
    shard_devices: int | None = None
    devices: int | None = None  # how many devices to use; by default all
    steps_per_dispatch: int = 64  # most steps that the device is sent at a time
    data_on_device: Literal["auto", "yes", "no"] = "auto"  # auto: sets up to 1 GiB, decoded once; others stream
    workers: int | None = None  # threads that read and decode images; by default one for each core
    log_every: int = 50  # steps between lines of metrics.jsonl, each the mean since the last
    sample_every: int = 500  # steps between sample grids
    checkpoint_every: int = 1000  # steps between checkpoints
    keep_checkpoints: int = 3  # newest checkpoints that are kept
    keep_every: int | None = None  # checkpoints at multiples of this are kept for good
    evaluate_every: int | None = None  # steps between evaluations, as `ganstyle evaluate` makes them; by default none
    # what is measured; by the first of them the best checkpoint is found, and kept
    evaluate_metrics: tuple[evaluate.Metric, ...] = ("fid",)
    evaluate_features: str = "auto"  # network whose features are compared; auto: inception if it is here, else compact
    evaluate_count: int = 2_000  # pictures that are drawn, and real images that they are compared with
    stop_on_collapse: bool = False  # end the run when two sample grids in a row are warned of, as collapsed ones are
    deterministic: bool = False  # GPU: only kernels that give the same bits every time, slower
    progress: Literal["auto", "bar", "lines", "none"] = "auto"  # auto: a bar at a terminal, lines in a file
    profile: str | None = None  # A:B, write a profile of steps A to B for TensorBoard
    dry_run: bool = False  # print config, parameters, memory and FLOPs, and stop

    def __post_init__(self):
        for name in ("steps", "batch_size", "steps_per_dispatch", "log_every", "sample_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every must be at least 1, got {self.evaluate_every}")
        if self.evaluate_count < 2:
            raise ValueError(f"evaluate_count must be at least 2, got {self.evaluate_count}")
        if self.evaluate_every is not None:
            _ = self.evaluation  # refuses what it refuses before anything is done
        if self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}")
        if not 0 <= self.seed < 2**32:  # JAX's keys keep 32 bits, unless float64 is on
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        if self.shard_state and self.parallel == "pmap":
            raise ValueError("shard_state needs parallel jit, got pmap, where every device has all of the state")
        if self.shard_devices is not None and not self.shard_state:
            raise ValueError(f"shard_devices belongs to shard_state, got {self.shard_devices} without it")
        if self.profile is not None:
            self.profile_range()

    @property
    def evaluation(self) -> evaluate.Settings:
        """What is measured while training."""
        count = self.evaluate_count
        return evaluate.Settings(self.evaluate_metrics, self.evaluate_features, count=count, real_count=count)

    def profile_range(self) -> range:
        """Steps to profile, empty for none; ValueError for anything but A:B."""
        if self.profile is None:
            return range(0)
        try:
            first, last = (int(part) for part in self.profile.split(":"))
            if not 0 <= first < last:
                raise ValueError
        except ValueError:
            raise ValueError(f"profile must be two steps such as 100:110, got {self.profile!r}") from None
        return range(first, last)
