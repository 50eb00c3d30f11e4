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
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn import compiled
from ganstyle_jax.nn.convolutions import compiling_for, on_cpu
from ganstyle_jax.programs import Lowered
from ganstyle_jax.restore import early_stopping, lanczos
from ganstyle_jax.restore.early_stopping import Watch
from ganstyle_jax.restore.hourglass import Hourglass, Upsampling

Operator = Callable[[jax.Array], jax.Array]  # a picture (h, w, c) in [-1, 1] to what would be measured of it, any shape
Task = Literal["denoise", "jpeg", "inpaint", "text", "region", "hole", "sparse", "super-resolve", "flash"]

MASKED = ("inpaint", "text", "region", "hole", "sparse")  # tasks that need a mask
ROWS = 100  # steps of one dispatch, at most
TOGETHER = 4  # networks that one program for a CPU works on side by side
SMOOTH = 1e-8  # below which total variation is not steep, in squared differences


@dataclasses.dataclass(frozen=True)
class Config:
    """A restoration by Deep Image Prior. What is None is by the task, as in the paper: see PRESETS."""

    # inpaint, text: what a mask hides in many places; region: one place; hole: a large one; sparse: most pixels
    task: Task = "denoise"
    scale: int = 4  # times as wide and high, of super-resolve: 2, 4 or 8
    stopping: Literal["wmv", "emv", "steps"] = "wmv"  # by the variance of the last pictures, of all, or after `steps`
    steps: int | None = None  # of Adam: all of them with --stopping steps, else the most
    window: int = 100  # pictures, of which wmv takes the variance; as many steps emv waits before it begins to look
    patience: int = 1000  # steps without a lower variance, after which it stops
    forgetting: float = 0.1  # of emv: weight of the newest picture
    restarts: int = 1  # networks that begin with other random weights and noise; their pictures are averaged
    averaging: float | None = None  # a running mean of pictures that keeps this share each step; 0: the last by itself
    input: Literal["noise", "meshgrid", "guide"] | None = None  # what the network makes the picture of
    depth: int | None = None  # channels of the noise
    input_noise: float | None = None  # standard deviation of what is added to the input, anew in each step
    channels: tuple[int, ...] | None = None  # of each scale, from the finest
    skip: tuple[int, ...] | None = None  # channels of each scale's skip connection, 0 for none; or one number for all
    kernel_down: int | None = None  # pixels of the kernels on the way down, odd
    pointwise: bool | None = None  # a convolution of single pixels after each enlargement
    upsampling: tuple[Upsampling, ...] | None = None  # of each scale, from the finest, or one for all
    learning_rate: float | None = None  # of Adam
    tv_weight: float = 0.0  # of total variation, which smooths
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices = get_args(field.type) if get_origin(field.type) is Literal else CHOICES.get(field.name)
            if choices and value not in choices:
                named = ", ".join(str(x) for x in choices if x is not None)
                raise ValueError(f"{field.name} must be one of {named}, got {value!r}")
        least = {"steps": 1, "window": 2, "patience": 1, "restarts": 1, "depth": 1}
        for name, smallest in least.items():
            if getattr(self, name) is not None and getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        for name in ("input_noise", "tv_weight"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        if not 0 < self.forgetting < 1:
            raise ValueError(f"forgetting must be between 0 and 1, got {self.forgetting}")
        if self.averaging is not None and not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be at least 0 and less than 1, got {self.averaging}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        network = {name: getattr(self, name) for name in NETWORK}
        if None not in network.values():
            Hourglass(**network)  # says what is wrong with it


NETWORK = ("depth", "channels", "skip", "kernel_down", "pointwise", "upsampling")
CHOICES = {"scale": (2, 4, 8), "input": (None, "noise", "meshgrid", "guide")}


# ---------------------------------------------------------------------------------------------------------------------
# What the paper takes for each task: its supplement, and the authors' notebooks, by which its figures are made

_DENOISE: dict[str, Any] = {  # F16, figure 21's network
    "steps": 3000,
    "averaging": 0.99,
    "input": "noise",
    "depth": 32,
    "input_noise": 1 / 30,  # 1 / 20 where the noise has a deviation of 50 of 255
    "channels": (128,) * 5,
    "skip": (4,) * 5,
    "kernel_down": 3,
    "pointwise": True,
    "upsampling": ("bilinear",) * 5,
    "learning_rate": 0.01,
}
# kate and peppers: text, and scratches everywhere
_TEXT = _DENOISE | {
    "steps": 6001,
    "averaging": 0.0,
    "input_noise": 0.03,
    "skip": (128,) * 5,
    "upsampling": ("nearest",) * 5,
}
_SUPER = _DENOISE | {"steps": 2000, "averaging": 0.0, "input_noise": 0.03}

PRESETS: dict[str, dict[str, Any]] = {
    "denoise": _DENOISE,
    # snail: a small network, which cannot follow the edges of blocks
    "jpeg": _DENOISE | {"steps": 2400, "depth": 3, "channels": (8, 16, 32, 64, 128), "skip": (0, 0, 0, 4, 4)},
    "inpaint": _TEXT,
    "text": _TEXT,
    # vase: no skip connections, and the places of pixels in the place of noise
    "region": _TEXT | {"steps": 5001, "input": "meshgrid", "depth": 2, "skip": (0,) * 5},
    # library: six scales
    "hole": _TEXT
    | {
        "steps": 3001,
        "depth": 1,
        "input_noise": 0.0,
        "channels": (16, 32, 64, 128, 128, 128),
        "skip": (0,) * 6,
        "kernel_down": 5,
        "pointwise": False,
        "upsampling": ("nearest",) * 6,
    },
    # barbara: half of the pixels
    "sparse": _DENOISE | {"steps": 11000, "averaging": 0.0, "input_noise": 0.03, "learning_rate": 0.001},
    "super-resolve": _SUPER,
    "flash": _DENOISE
    | {
        "steps": 601,
        "averaging": 0.0,
        "input": "guide",
        "depth": 3,
        "input_noise": 0.0,
        "upsampling": ("nearest", "nearest", "bilinear", "bilinear", "bilinear"),
        "learning_rate": 0.1,
    },
}
EIGHTFOLD = {"steps": 4000, "input_noise": 0.05}  # of super-resolve x8, unlike x4


def preset(task: Task, scale: int = 4, cfg: Config | None = None) -> Config:
    """The settings of a task, complete; those of cfg that are not None stay as they are.

    With other `channels` than the paper's, skip connections and enlargements are as those of its finest scale. Where it
    stops by itself, the most steps are the paper's and as many more as it waits.
    """
    found = PRESETS[task] | (EIGHTFOLD if task == "super-resolve" and scale == 8 else {})
    cfg = cfg or Config()
    given = {name: value for name, value in vars(cfg).items() if value is not None}
    chosen: dict[str, Any] = found | given | {"task": task, "scale": scale}
    if "steps" not in given and cfg.stopping != "steps":
        chosen["steps"] += cfg.patience
    if chosen["input"] != "noise":
        chosen["depth"] = {"meshgrid": 2, "guide": 3}[chosen["input"]]
    elif "depth" not in given and found["input"] != "noise":
        chosen["depth"] = _DENOISE["depth"]
    for name in ("skip", "upsampling"):
        scales = len(chosen["channels"])
        if len(chosen[name]) == 1 or (name not in given and len(chosen[name]) != scales):
            chosen[name] = chosen[name][:1] * scales
    return Config(**chosen)


def network_of(cfg: Config, colours: int) -> Hourglass:
    """That of a complete config, for pictures of so many channels."""
    return Hourglass(**{name: getattr(cfg, name) for name in NETWORK}, colours=colours)


# ---------------------------------------------------------------------------------------------------------------------
# State


@flax.struct.dataclass
class State:
    """All that it takes to go on, bit for bit.

    All but `step` and `limit` have leading axes: (pictures, restarts), or (restarts,) of one picture by itself.
    """

    step: jax.Array  # () int32, steps done
    limit: jax.Array  # () int32, the most steps
    keys: jax.Array  # (.., 2) uint32, of which weights, noise and each step's noise are made
    params: Any
    opt_state: Any
    picture: jax.Array  # (.., h, w, c) in [0, 1], the last
    average: jax.Array  # (.., h, w, c), the running mean of pictures
    watch: Watch  # early stopping, and the picture to return


Trace = dict[str, jax.Array]
_Given = dict[str, jax.Array]  # "measured", and "mask" and "guide" where there are such; in [0, 1]


def optimizer(cfg: Config) -> optax.GradientTransformation:
    assert cfg.learning_rate is not None
    return optax.adam(cfg.learning_rate)


def init(
    key: jax.Array,
    measured: Any,
    cfg: Config,
    mask: Any = None,
    guide: Any = None,
    operator: Operator | None = None,
    shape: tuple[int, ...] | None = None,
) -> State:
    """The beginning. measured: (h, w, c) in [-1, 1], or (n, h, w, c) of n pictures that are restored each by itself.

    mask: (h, w) or (h, w, 1), 1 where `measured` is known and 0 where it is not; (n, ..) of n pictures. guide: the
    picture with flash, of the restored picture's size. operator, shape: what the user measures of a picture, and the
    restored picture's (h, w, c), which is otherwise the task's; then `measured` is one array of any shape, and
    operator(picture) is to be like it. Of n pictures the i-th is what it is alone with jax.random.fold_in(key, i).
    Raises UserError for a mask of another size, all black or all white, and for what a task lacks.
    """
    cfg = preset(cfg.task, cfg.scale, cfg)
    given = _given(measured, cfg, mask, guide, operator)
    if shape is None:
        shape = _shape(given["measured"].shape, cfg, operator)
    many = operator is None and given["measured"].ndim == 4
    if "guide" in given and given["guide"].shape[many:] != (*shape[:2], 3):
        found = "x".join(map(str, given["guide"].shape[many : many + 2]))
        raise UserError(f"the guide must have the picture's size {shape[0]}x{shape[1]}, got {found}: scale or crop it")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(given["measured"]))) if many else key
    each = jax.vmap(lambda key: jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(cfg.restarts)))
    keys = each(keys) if many else each(keys[None])[0]
    return _begin(jax.random.key_data(keys), cfg, tuple(shape))


def _shape(measured: tuple[int, ...], cfg: Config, operator: Operator | None) -> tuple[int, ...]:
    """(h, w, c) of the restored picture."""
    if operator is not None:
        raise UserError("an operator of one's own needs the shape of the picture that is sought: give shape=(h, w, c)")
    *_, height, width, colours = measured
    factor = cfg.scale if cfg.task == "super-resolve" else 1
    return height * factor, width * factor, colours


def _given(measured: Any, cfg: Config, mask: Any, guide: Any, operator: Operator | None) -> _Given:
    """As arrays in [0, 1], checked."""
    measured = np.asarray(measured, cfg.dtype)
    if operator is not None:
        if mask is not None:
            raise UserError("a mask is not taken beside an operator: hide in the operator what is not known")
        given = {"measured": measured}  # is compared as the operator gives it
    else:
        if measured.ndim not in (3, 4) or measured.shape[-1] not in (1, 3):
            raise UserError(f"pictures must be (h, w, 3) or (n, h, w, 3), or of one channel, got {measured.shape}")
        given = {"measured": (measured + 1) / 2}
    many = operator is None and measured.ndim == 4
    if mask is None and cfg.task in MASKED and operator is None:
        raise UserError(f"{cfg.task} needs a mask of the picture's size, white where it is known and black elsewhere")
    if mask is not None:
        mask = np.asarray(mask, cfg.dtype)
        mask = mask[..., None] if mask.ndim == 2 + many else mask
        if mask.shape[:-1] != measured.shape[:-1] or mask.shape[-1] not in (1, measured.shape[-1]):
            sizes = ["x".join(map(str, x.shape[many : many + 2])) for x in (mask, measured)]
            raise UserError(f"the mask must have the picture's size {sizes[1]}, got {sizes[0]}: scale or crop it")
        if not (mask.min() >= 0 and mask.max() <= 1):
            raise UserError(f"a mask must be from 0 to 1, got {mask.min():g} to {mask.max():g}: divide bytes by 255")
        for one in mask if many else [mask]:
            if one.max() == 0:
                raise UserError("the mask is all black, so that nothing of the picture is known: white is what is kept")
            if one.min() == 1:
                raise UserError("the mask is all white, so that there is nothing to fill in: paint black what is lost")
        given["mask"] = mask
    if cfg.input == "guide":
        if guide is None:
            raise UserError("flash needs a guide, the picture with flash, of the same size as the one without")
        guide = np.asarray(guide, cfg.dtype)
        if guide.ndim != 3 + many or guide.shape[-1] != 3:
            raise UserError(f"the guide must be a picture of three colours for each picture, got shape {guide.shape}")
        given["guide"] = (guide + 1) / 2
    return given


@functools.partial(jax.jit, static_argnames=("cfg", "shape"))
def _begin(keys: jax.Array, cfg: Config, shape: tuple[int, int, int]) -> State:
    def one(keys):
        params = network_of(cfg, shape[2]).init(_key(keys, "weights"), cfg.dtype)
        blank = jnp.zeros(shape, cfg.dtype)
        watch = early_stopping.begin(blank, cfg.stopping, cfg.window)
        return params, optimizer(cfg).init(params), blank, blank, watch

    many = one
    for _ in keys.shape[:-1]:
        many = jax.vmap(many)
    params, opt_state, picture, average, watch = many(keys)
    step, limit = jnp.zeros((), jnp.int32), jnp.asarray(cfg.steps, jnp.int32)
    return State(step, limit, keys, params, opt_state, picture, average, watch)


def _key(keys: jax.Array, purpose: Literal["weights", "input", "steps"]) -> jax.Array:
    return jax.random.fold_in(jax.random.wrap_key_data(keys), ("weights", "input", "steps").index(purpose))


def arrays_of(state: State) -> dict[str, np.ndarray]:
    """Copies of all of it by name, for a file."""
    return {jax.tree_util.keystr(path): np.array(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}


def state_of(arrays: Mapping[str, np.ndarray], like: State) -> State:
    """Undoes `arrays_of`. like: a state of the same pictures and config, such as `init` gives, or of its shapes.

    Raises ValueError for arrays that are not a state of such.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    found = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        array = arrays.get(name)
        if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
            got = None if array is None else f"{array.shape} {array.dtype}"
            raise ValueError(f"{name} must be {leaf.shape} {leaf.dtype}, got {got}")
        found.append(jax.device_put(array))
    return jax.tree_util.tree_unflatten(structure, found)


# ---------------------------------------------------------------------------------------------------------------------
# One step


@flax.struct.dataclass
class _Cell:
    """One network on one picture, of a State."""

    keys: jax.Array
    params: Any
    opt_state: Any
    picture: jax.Array
    average: jax.Array
    watch: Watch


def make_input(keys: jax.Array, cfg: Config, shape: Sequence[int], guide: jax.Array | None = None) -> jax.Array:
    """What the network makes the picture of, (1, H, W, depth) with sides of its canvas, before noise is added."""
    height, width = network_of(cfg, shape[2]).canvas(*shape[:2])
    if cfg.input == "guide":
        assert guide is not None
        return jnp.pad(guide, ((0, height - shape[0]), (0, width - shape[1]), (0, 0)), mode="edge")[None]
    if cfg.input == "meshgrid":
        rows, columns = (jnp.linspace(0, 1, side, dtype=cfg.dtype) for side in (height, width))
        return jnp.stack(jnp.meshgrid(columns, rows), -1)[None]
    assert cfg.depth is not None
    return 0.1 * jax.random.uniform(_key(keys, "input"), (1, height, width, cfg.depth), cfg.dtype)


def make_picture(params: Any, z: jax.Array, cfg: Config, shape: Sequence[int]) -> jax.Array:
    """What the network makes of its input, (h, w, c) in [0, 1]."""
    return network_of(cfg, shape[2]).apply(params, z)[0, : shape[0], : shape[1]]


def loss_of(picture: jax.Array, given: _Given, cfg: Config, operator: Operator | None = None) -> jax.Array:
    """Mean squared error of what would be measured of a picture (h, w, c) in [0, 1] (their eq. 2), and smoothness."""
    if operator is not None:
        found, wanted = operator(2 * picture - 1) / 2, given["measured"] / 2
    else:
        found, wanted = picture, given["measured"]
        if cfg.task == "super-resolve":
            found = lanczos.shrink(found, cfg.scale)
        if "mask" in given:
            found, wanted = found * given["mask"], wanted * given["mask"]
    loss = jnp.mean((found - wanted) ** 2)
    return loss + cfg.tv_weight * total_variation(picture) if cfg.tv_weight else loss


def total_variation(picture: jax.Array) -> jax.Array:
    """Mean length of the gradient of (h, w, c), by differences to the pixels on the right and below."""
    right = (picture[:, 1:] - picture[:, :-1])[:-1]
    below = (picture[1:] - picture[:-1])[:, :-1]
    return jnp.mean(jnp.sqrt(right**2 + below**2 + SMOOTH))


def step_of(
    params: Any, opt_state: Any, z: jax.Array, given: _Given, cfg: Config, shape: Sequence[int], operator=None
) -> tuple[Any, Any, jax.Array, jax.Array]:
    """One step of Adam with the input z: (weights, Adam's state, loss, the picture of the weights before)."""

    def loss(params):
        picture = make_picture(params, z, cfg, shape)
        return loss_of(picture, given, cfg, operator), picture

    (value, picture), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer(cfg).update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value, picture


def _step(
    cell: _Cell, step: jax.Array, z: jax.Array, given: _Given, cfg: Config, operator: Operator | None
) -> tuple[_Cell, tuple[jax.Array, jax.Array, jax.Array]]:
    """Step number `step`, from 0: (cell, (loss, variance, whether it has stopped))."""
    if cfg.input_noise:
        key = jax.random.fold_in(_key(cell.keys, "steps"), step)
        z = z + cfg.input_noise * jax.random.normal(key, z.shape, z.dtype)
    shape = cell.picture.shape
    params, opt_state, loss, picture = step_of(cell.params, cell.opt_state, z, given, cfg, shape, operator)
    assert cfg.averaging is not None
    average = jnp.where(step == 0, picture, cfg.averaging * cell.average + (1 - cfg.averaging) * picture)
    looked = cfg.stopping, cfg.window, cfg.patience, cfg.forgetting
    watch, variance = early_stopping.look(cell.watch, step, picture, average, *looked)
    told = jnp.where(cell.watch.stopped, jnp.nan, loss), variance, watch.stopped
    return _Cell(cell.keys, params, opt_state, picture, average, watch), told


# ---------------------------------------------------------------------------------------------------------------------
# A plan


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """What is planned of `ganstyle restore`."""

    topology: str  # one chip, such as h200:1 or v5e:1x1: each picture is one chip's
    size: int = 512  # pixels of the restored picture's side


def lower_step(settings: PlanSettings, cfg: Config, devices: Sequence[Any]) -> Lowered:
    """One step of one network on one picture. Raises ValueError for several chips."""
    if len(devices) > 1:
        raise ValueError(f"each picture is one chip's: give a topology of one chip, got {settings.topology}")
    cfg = preset(cfg.task, cfg.scale, cfg)
    shape = (settings.size, settings.size, 3)
    placed = SingleDeviceSharding(devices[0])

    def array(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

    keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    state = jax.tree.map(array, jax.eval_shape(lambda keys: _begin(keys, cfg, shape), keys))
    cell = _Cell(*(getattr(state, field.name) for field in dataclasses.fields(_Cell)))
    small = tuple(side // cfg.scale for side in shape[:2]) if cfg.task == "super-resolve" else shape[:2]
    given = {"measured": (*small, 3)} | ({"mask": (*small, 1)} if cfg.task in MASKED else {})
    given |= {"guide": shape} if cfg.input == "guide" else {}
    given = {name: array(jax.ShapeDtypeStruct(sides, cfg.dtype)) for name, sides in given.items()}

    def step(cell: _Cell, step: jax.Array, given: _Given) -> Any:
        z = make_input(cell.keys, cfg, shape, given.get("guide"))
        return _step(cell, step, z, given, cfg, None)

    with compiling_for(devices[0].platform):
        lowered = jax.jit(step, donate_argnums=0).lower(cell, array(state.step), given)
    unit = f"a step of {cfg.task}, {settings.size} x {settings.size} pixels"
    return Lowered(lowered, 0, unit, "take a smaller --size")


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def advance(
    state: State,
    measured: Any,
    cfg: Config,
    steps: int,
    mask: Any = None,
    guide: Any = None,
    operator: Operator | None = None,
    devices: Sequence[Any] | None = None,
) -> tuple[State, Trace]:
    """So many steps more, on the device: fewer where every picture has stopped or `cfg.steps` are done.

    The state that is given is used up. devices: among which n pictures are dealt out, n a multiple of them. The trace
    is of the steps that were done: {"loss", "variance", "stopped"}, each (steps, ..) with the leading axes of `State`;
    NaN is the variance before there is one, and all that is of a picture that has stopped.
    """
    cfg = preset(cfg.task, cfg.scale, cfg)
    given = _given(measured, cfg, mask, guide, operator)
    mesh = None
    if devices is not None and len(devices) > 1:
        if state.keys.ndim < 3 or len(state.keys) % len(devices):
            count = len(state.keys) if state.keys.ndim == 3 else 1
            raise UserError(f"{count} pictures cannot be dealt out among {len(devices)} devices: take a multiple")
        mesh = Mesh(np.asarray(devices), ("pictures",))
        by_picture = NamedSharding(mesh, PartitionSpec("pictures"))
        given = jax.device_put(given, by_picture)
    given = jax.tree.map(jnp.asarray, given)
    state = dataclasses.replace(state, limit=jnp.asarray(cfg.steps, jnp.int32))
    last, parts = min(int(state.step) + steps, int(state.limit)), []
    while int(state.step) < last and not bool(state.watch.stopped.all()):
        before = int(state.step)
        state, told = _advance(state, given, jnp.int32(min(before + ROWS, last)), cfg, operator, mesh)
        parts.append([x[: int(state.step) - before] for x in told])
    columns = zip(*parts, strict=True) if parts else [[jnp.zeros((0, *state.keys.shape[:-1]))]] * 3
    return state, dict(zip(("loss", "variance", "stopped"), map(jnp.concatenate, columns), strict=True))


@functools.partial(compiled.soon, static_argnames=("cfg", "operator", "mesh"), donate_argnames="state")
def _advance(
    state: State, given: _Given, until: jax.Array, cfg: Config, operator: Operator | None, mesh: Mesh | None
) -> tuple[State, list[jax.Array]]:
    """Until that step; (state, [losses, variances, stopped], each (ROWS, ..))."""
    cells = _Cell(*(getattr(state, field.name) for field in dataclasses.fields(_Cell)))
    lead = state.keys.shape[:-1]

    def work(cells: _Cell, given: _Given, step: jax.Array, until: jax.Array):
        return _loop(cells, given, step, until, cfg, operator, len(lead) == 2, None if mesh is None else "pictures")

    if mesh is not None:
        by_picture, all_of_it = PartitionSpec("pictures"), PartitionSpec()
        work = jax.shard_map(
            work,
            mesh=mesh,
            in_specs=(by_picture, by_picture, all_of_it, all_of_it),
            out_specs=(all_of_it, by_picture, PartitionSpec(None, "pictures")),
            check_vma=False,
        )
    step, cells, told = work(cells, given, state.step, until)
    return State(step, state.limit, **vars(cells)), told


def _loop(
    cells: _Cell,
    given: _Given,
    step: jax.Array,
    until: jax.Array,
    cfg: Config,
    operator: Operator | None,
    many: bool,
    axis_name: str | None,
) -> tuple[jax.Array, _Cell, list[jax.Array]]:
    """All pictures and restarts of one device."""
    lead = cells.keys.shape[:-1]
    restarts, count = lead[-1], math.prod(lead)
    flat = jax.tree.map(lambda x: x.reshape(count, *x.shape[len(lead) :]), cells)
    # Each restart has its picture beside it.
    own = jax.tree.map(lambda x: jnp.repeat(x, restarts, 0) if many else jnp.stack([x] * restarts), given)

    def begun(cell, given):
        return make_input(cell.keys, cfg, cell.picture.shape, given.get("guide"))

    def one(cell, step, z, given):
        return _step(cell, step, z, given, cfg, operator)

    def side_by_side(cells, given):
        """One program for all, as it suits accelerators."""
        z = jax.vmap(begun)(cells, given)
        return _while(cells, lambda c, k: jax.vmap(one, (0, None, 0, 0))(c, k, z, given), step, until)

    def unrolled(cells, given):
        """As many programs in one: on CPUs convolutions by kernels of several networks at once are slow."""
        parts, givens = _unstacked(cells), _unstacked(given)
        inputs = [begun(*x) for x in zip(parts, givens, strict=True)]

        def body(cells, k):
            made = [one(cell, k, *x) for cell, *x in zip(cells, inputs, givens, strict=True)]
            return [cell for cell, _ in made], [jnp.stack(x) for x in zip(*(told for _, told in made), strict=True)]

        last, parts, told = _while(parts, body, step, until)
        return last, jax.tree.map(lambda *x: jnp.stack(x), *parts), told

    if not on_cpu("auto"):
        last, flat, told = side_by_side(flat, own)
    elif count <= TOGETHER:
        last, flat, told = unrolled(flat, own)
    else:
        alone = jax.tree.map(lambda x: x[:, None], (flat, own))
        lasts, flat, told = lax.map(lambda x: unrolled(*x), alone)
        last, told = lasts.max(), [x.T for x in (told[0][..., 0], told[1][..., 0], told[2][..., 0])]
    if axis_name is not None:
        last = lax.pmax(last, axis_name)
    return last, jax.tree.map(lambda x, like: x.reshape(like.shape), flat, cells), [x.reshape(-1, *lead) for x in told]


def _unstacked(tree: Any) -> list[Any]:
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(jax.tree.leaves(tree)[0]))]


def _while(
    cells: Any, body: Callable[[Any, jax.Array], tuple[Any, Sequence[jax.Array]]], step: jax.Array, until: jax.Array
) -> tuple[jax.Array, Any, list[jax.Array]]:
    """Until that step, or all have stopped; (steps done, cells, [losses, variances, stopped], each (ROWS, count))."""
    losses, _, ended = jax.eval_shape(lambda c: body(c, step)[1], cells)
    blank = jnp.full((ROWS, *losses.shape), jnp.nan, losses.dtype)
    told = [blank, blank, jnp.ones((ROWS, *ended.shape), bool)]
    watches = [cell.watch.stopped for cell in cells] if isinstance(cells, list) else cells.watch.stopped

    def more(carry):
        k, _, _, ended = carry
        return (k < until) & ~ended

    def go(carry):
        k, cells, told, _ = carry
        cells, now = body(cells, k)
        told = [x.at[k - step].set(y.astype(x.dtype)) for x, y in zip(told, now, strict=True)]
        return k + 1, cells, told, now[2].all()

    k, cells, told, _ = lax.while_loop(more, go, (step, cells, told, jnp.asarray(watches).all()))
    return k, cells, told


# ---------------------------------------------------------------------------------------------------------------------
# What came of it


def stopped(state: State) -> bool:
    """Whether there is nothing more to do: every picture has stopped by itself, or the steps are done."""
    return bool(state.watch.stopped.all()) or int(state.step) >= int(state.limit)


def restored(state: State, cfg: Config) -> np.ndarray:
    """The picture of each restart at its lowest variance so far, or the last, averaged over restarts.

    (h, w, c) float32 in [-1, 1], or (n, h, w, c).
    """
    del cfg  # has said what is kept
    return _shown(state.watch.best)


def latest(state: State, cfg: Config) -> np.ndarray:
    """As `restored`, of the last step, to be looked at on the way."""
    return _shown(state.average if preset(cfg.task, cfg.scale, cfg).averaging else state.picture)


def _shown(pictures: jax.Array) -> np.ndarray:
    return np.asarray(2 * jnp.clip(pictures.mean(-4), 0, 1) - 1, np.float32)
