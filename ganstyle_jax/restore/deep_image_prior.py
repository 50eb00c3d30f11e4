"""Restoration by an untrained network (Deep Image Prior: Ulyanov, Vedaldi & Lempitsky 2018, CVPR; arXiv:1711.10925).

    cfg = Config(task="denoise")
    state = init(jax.random.key(0), noisy, cfg)                  # noisy (h, w, 3) in [-1, 1]
    while not stopped(state):
        state, trace = advance(state, noisy, cfg, steps=100)
    picture = restored(state, cfg)                               # (h, w, 3) in [-1, 1]

No data are learned from. The weights of a network that makes a picture of noise are fitted to the one damaged picture,
and the network takes to what is natural in it sooner than to the damage: stopped in time, it has restored it. What was
measured may be less than the picture: some of its pixels (`mask`), a smaller one, or what the user's own `operator`
makes of it.

Differs from the paper and its authors' code:
- stopped without ground truth where the variance of the pictures on the way is least (ES-WMV and ES-EMV, see
  early_stopping.py); --stopping steps is the paper's fixed number;
- no biases before BatchNorm, which takes them away again. Noise on the weights, which the code for `library` means to
  add and does not, is left out;
- a picture of any size: the network's own is the next that its scales divide, and is cropped;
- total variation is a mean over pixels instead of a sum, so that its weight means the same at any size;
- no falling back to earlier weights where the loss leaps: what was best is kept.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.struct
import jax
import numpy as np

Operator = Callable[[jax.Array], jax.Array]  # a picture (h, w, 3) in [-1, 1] to what would be measured of it, any shape

Task = Literal["denoise", "jpeg", "inpaint", "text", "region", "hole", "sparse", "super-resolve", "flash"]


@dataclasses.dataclass(frozen=True)
class Config:
    """A restoration by Deep Image Prior. What is None is by the task, as in the paper: see PRESETS."""

    # inpaint, text: what a mask hides in many places; region: one place; hole: a large one; sparse: most pixels
    task: Task = "denoise"
    scale: int = 4  # times as wide and high, of super-resolve
    stopping: Literal["wmv", "emv", "steps"] = "wmv"  # by the variance of the last pictures, of all, or after `steps`
    steps: int | None = None  # of Adam: all of them with --stopping steps, else the most
    window: int = 100  # pictures, of which wmv takes the variance
    patience: int = 1000  # steps without a lower variance, after which it stops
    forgetting: float = 0.1  # of emv: weight of the newest picture
    restarts: int = 1  # networks that begin from other random weights; their pictures are averaged
    averaging: float | None = None  # the picture is the running mean of those on the way, which keeps this share a step
    input: Literal["noise", "meshgrid", "guide"] | None = None  # what the network makes the picture of
    depth: int | None = None  # channels of the noise
    input_noise: float | None = None  # standard deviation of what is added to the input anew in each step
    channels: tuple[int, ...] | None = None  # of each scale, from the finest
    skip: tuple[int, ...] | None = None  # channels of each scale's skip connection, 0 for none
    kernel_down: int | None = None  # pixels of the kernels on the way down, odd
    pointwise: bool | None = None  # a convolution of single pixels after each enlargement
    upsampling: tuple[Literal["nearest", "bilinear"], ...] | None = None  # of each scale, or one for all
    learning_rate: float | None = None  # of Adam
    tv_weight: float = 0.0  # of total variation, which smooths
    dtype: Literal["float32", "float64"] = "float32"


@flax.struct.dataclass
class State:
    """All that it takes to go on, bit for bit, with its leading axes: (pictures,) if there are many, and (restarts,)."""

    step: jax.Array  # () int32, steps done
    picture: jax.Array  # (.., h, w, 3) in [0, 1]: the last


Trace = dict[str, jax.Array]  # "loss", "variance", "stopped", each (steps, ..), NaN or True where no step was taken


def preset(task: Task, scale: int = 4, cfg: Config | None = None) -> Config:
    """The settings of a task, complete; those that are given in cfg, and are not None, stay as they are."""
    raise NotImplementedError


def init(
    key: jax.Array,
    measured: Any,
    cfg: Config,
    mask: Any = None,
    guide: Any = None,
    operator: Operator | None = None,
    shape: tuple[int, int] | None = None,
) -> State:
    """The beginning. measured: (h, w, 3) in [-1, 1], or (n, h, w, 3) of n pictures that are restored each by itself.

    mask: (h, w) or (h, w, 1), 1 where `measured` is known and 0 where it is not; (n, ..) of n pictures. guide: the
    picture with flash, of the restored picture's shape. operator, shape: the user's own, and the restored picture's
    (h, w), which is otherwise the task's; then `measured` is of any shape, and of one picture.
    Raises UserError for a mask of another size, all black or all white, and for pictures that are too small.
    """
    raise NotImplementedError


def advance(
    state: State,
    measured: Any,
    cfg: Config,
    steps: int,
    mask: Any = None,
    guide: Any = None,
    operator: Operator | None = None,
    devices: Any = None,
) -> tuple[State, Trace]:
    """Up to so many steps more, on the device, fewer where all have stopped; the state that is given is used up.

    The trace is of the steps that were asked for: {"loss", "variance", "stopped"}, each (steps, .., restarts).
    """
    raise NotImplementedError


def stopped(state: State) -> bool:
    """Whether there is nothing more to do: every picture has stopped, or the steps are done."""
    raise NotImplementedError


def restored(state: State, cfg: Config) -> np.ndarray:
    """The pictures at their stops, or the best by now, averaged over restarts: (h, w, 3) float32 in [-1, 1]."""
    raise NotImplementedError


def arrays_of(state: State) -> dict[str, np.ndarray]:
    """Copies of all of it by name, for a file."""
    raise NotImplementedError


def state_of(arrays: Mapping[str, np.ndarray], like: State) -> State:
    """Undoes `arrays_of`; like: a state of the same pictures and config, such as `init` gives."""
    raise NotImplementedError
