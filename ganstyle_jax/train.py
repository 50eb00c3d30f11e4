"""The training loop: `run(method, cfg, data)` hides mesh, data, resume, logging, samples and checkpoints.

A method is a module with

    Config                                          a frozen dataclass with `image_size` and `channels`
    init(key, cfg) -> state                         any tree of arrays
    train_step(state, batch, key, cfg, axis_name)   -> (state, {name: scalar})
    latents(key, n, cfg), generator(state, cfg), sample(generator, latents, cfg)
    batches_per_step(cfg) -> int                    optional: batches of images that one step uses, 1 by default

and knows nothing of devices but `axis_name`. The same step is compiled in one of two ways: by `jit` over a mesh whose
one axis is the batch's, where XLA sees the global batch and inserts the collectives (default), or by `pmap`, where the
step sees one device's part and averages over `axis_name` itself. Both give the same numbers.

Several steps go out in one dispatch, and the host never waits for a single one: while the device computes, it prepares
what comes next and logs what came before.
"""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ganstyle_jax import data as data_module
from ganstyle_jax import evaluate, layers, processes, runs
from ganstyle_jax import images as image_files
from ganstyle_jax.checkpoints import Checkpoints, all_finite
from ganstyle_jax.files import UserError

AXIS = "batch"
RESIDENT_BYTES = 1 << 30  # sets up to this size live on the device
CHUNK_BYTES = 64 << 20  # of streamed images in one dispatch
GRID = 64  # pictures in a sample grid
SMALLEST_CUT = 4096  # values of an array that is worth cutting


@dataclasses.dataclass(frozen=True)
class Loop:
    """How long a run is, and where and on what devices it goes on."""

    run_dir: Path | None = None  # folder for all that the run leaves; by default runs/<method>
    steps: int = 10_000  # training steps
    batch_size: int = 64  # images of the global batch, over all devices
    seed: int = 0  # decides the weights, the order of the data and every random draw
    resume: Literal["never", "auto", "required"] = "never"  # auto: go on from the last checkpoint, if there is one
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
    stop_on_collapse: bool = False  # end the run when two sample grids in a row show a collapsed generator
    deterministic: bool = False  # GPU: only kernels that give the same bits every time, slower
    profile: str | None = None  # A:B, write a profile of steps A to B for TensorBoard
    dry_run: bool = False  # print config, parameters, memory and FLOPs, and stop

    def __post_init__(self):
        for name in ("steps", "batch_size", "steps_per_dispatch", "log_every", "sample_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every must be at least 1, got {self.evaluate_every}")
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


def run(
    method: ModuleType,
    cfg: Any,
    data: str | data_module.Source,
    loop: Loop = Loop(),
    callback: Callable[[int, dict], None] | None = None,
) -> Any:
    """Trains and returns the final state. Raises UserError for what a user can put right.

    method: a module, see the top of this file. data: a source as `ganstyle train --data` takes it, or an open one.
    callback(step, metrics) is called on every line of the log; an exception in it ends the run.
    SIGTERM and Ctrl-C save a checkpoint and raise SystemExit(143 or 130).
    """
    runs.check_method(method)
    if loop.deterministic and "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    if getattr(cfg, "dtype", None) == "float64":
        jax.config.update("jax_enable_x64", True)
    started = time.perf_counter()
    run_dir = loop.run_dir or Path("runs", Path(method.__file__ or method.__name__).stem)
    mesh = make_mesh(loop)
    previous = check_run_dir(run_dir, loop)
    processes.together("run folder checked")  # before the first one writes to it

    source = data_module.open_source(data, cfg.image_size, cfg.channels, loop.seed) if isinstance(data, str) else data
    cfg = dataclasses.replace(cfg, channels=source.image_shape[-1])
    description = runs.describe(method, cfg, data if isinstance(data, str) else source.name, loop)
    if previous is not None and (changes := runs.differences(previous, description)):
        raise UserError(
            f"{run_dir} holds another run: {'; '.join(changes)}. Choose another --run-dir or the same settings"
        )

    # Two independent streams: how the networks begin, and all that training draws.
    key_init, key_train = jax.random.split(jax.random.key(loop.seed))
    abstract = abstract_state(method, cfg, key_init, loop, mesh)
    make_state = jax.jit(lambda key: method.init(key, cfg), out_shardings=shardings_of(abstract))
    images = images_per_step(method, cfg, loop)
    share = jax.process_index(), jax.process_count()
    batches = data_module.Batches(source, images, loop.seed, *share, workers=loop.workers)
    feed = Feed(batches, loop, mesh)
    advance = make_advance(method, cfg, key_train, loop, mesh, abstract, feed)
    if loop.dry_run:
        print(dry_run_report(method, cfg, loop, description, abstract, advance, feed))
        return None

    checkpoints = Checkpoints(run_dir, loop.keep_checkpoints, loop.keep_every)
    restored = checkpoints.restore(abstract) if loop.resume != "never" else None
    if restored is not None:
        step, state = restored
        say(f"resuming {run_dir} at step {step}")
    elif loop.resume == "required":
        raise UserError(f"{run_dir} holds no checkpoint to resume; use --resume auto to begin where there is none")
    else:
        step, state = 0, make_state(key_init)
        if loop.init_from is not None:
            state = with_weights_of(loop.init_from, method, cfg, state)
    if step >= loop.steps:
        say(f"all {loop.steps} steps are done already (step {step}); samples and checkpoints are in {run_dir}")
        return state
    assess = evaluate.in_training(method, cfg, data, evaluation_settings(loop), mesh) if loop.evaluate_every else None
    if processes.is_first():
        runs.write(run_dir, method, description)
    try:
        with StopSignals() as stop:
            return _train(
                method, cfg, loop, run_dir, feed, advance, assess, checkpoints, step, state, started, stop, callback
            )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{run_dir} cannot be written: {error.strerror}. What was complete before is kept: free some room and run "
            "the same command with --resume auto"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "best cudnn convolution")):
            raise UserError(
                f"the device is out of memory: lower --batch-size (now {loop.batch_size}), --width or --image-size, "
                "or use --dtype bfloat16; --dry-run shows what is needed"
            ) from error
        raise


def _train(
    method: ModuleType,
    cfg: Any,
    loop: Loop,
    run_dir: Path,
    feed: "Feed",
    advance: Callable,
    assess: Callable[[int, Any], dict] | None,
    checkpoints: Checkpoints,
    step: int,
    state: Any,
    started: float,
    stop: "StopSignals",
    callback: Callable[[int, dict], None] | None,
) -> Any:
    """From `step` to `loop.steps`."""
    stored = feed.load()
    everywhere = NamedSharding(feed.mesh, PartitionSpec())
    draw_grid = jax.jit(lambda state, z: method.sample(method.generator(state, cfg), z, cfg), out_shardings=everywhere)
    # Always the same latents, so that grids of different steps can be compared.
    grid_latents = jax.tree.map(np.asarray, method.latents(jax.random.key(loop.seed), GRID, cfg))
    finite = jax.jit(all_finite, out_shardings=everywhere)
    journal = Journal(run_dir, loop, step, feed.real_diversity(), started)
    profile, tracing = loop.profile_range(), False
    last_saved = step
    checkpoints.best = journal.best_step
    pace = 1  # steps in a dispatch, so many that it takes about a second: signals and the progress bar want to be heard

    def ballot() -> list[int]:
        """What differs from process to process; all must stop together and do as many steps at a time."""
        return [stop.number, -pace, int(loop.stop_on_collapse and journal.collapsed)]

    votes = processes.agree(ballot, feed.mesh)
    pending: tuple[int, int, dict] | None = None  # first step, steps and metrics of the dispatch under way

    def settle() -> float:
        """Waits for the dispatch under way and logs it; seconds that it took per step."""
        nonlocal pending
        if pending is None:
            return 0.0
        (first, count, metrics), pending = pending, None
        metrics = {name: np.asarray(values)[:count] for name, values in metrics.items()}
        check_finite(metrics, first, checkpoints, run_dir)
        seconds = journal.record(first, metrics, callback)
        return seconds / count

    def save() -> None:
        nonlocal last_saved
        if step == last_saved:
            return
        if not finite(state):
            raise UserError(not_finite("the state", step, checkpoints, run_dir))
        checkpoints.save(step, state)
        last_saved = step

    with checkpoints, journal, feed.stream(step, loop.steps) as chunks:
        while step < loop.steps:
            number, negative_pace, collapsed = votes()
            if number:
                settle()
                save()
                checkpoints.close()
                done = f"saved step {step} in {run_dir}" if step else "no step was done yet"
                say(f"{signal.Signals(number).name} received: {done}; --resume auto goes on from there")
                raise SystemExit(128 + number)
            if collapsed:
                settle()
                raise UserError(collapse_report(step, checkpoints, run_dir))
            ends = [step - negative_pace, loop.steps]
            intervals = (loop.log_every, loop.sample_every, loop.checkpoint_every, loop.evaluate_every or loop.steps)
            ends += [(step // every + 1) * every for every in intervals]
            ends += [edge for edge in (profile.start, profile.stop) if edge > step]
            count = min(min(ends) - step, feed.rows)
            if step in profile and not tracing:
                jax.profiler.start_trace(str(run_dir / "profile"))
                tracing = True
            votes = processes.agree(ballot, feed.mesh)  # a dispatch ahead: nobody waits for it
            state, metrics = advance(state, stored, chunks(step, count), np.int32(step), np.int32(count))
            seconds_per_step = settle()  # of the dispatch before this one
            pending = (step, count, metrics)
            step += count
            if tracing and (step >= profile.stop or step == loop.steps):
                settle()
                jax.profiler.stop_trace()
                tracing = False
            if seconds_per_step:
                pace = max(1, int(1 / seconds_per_step))
            if step % loop.sample_every == 0 or step == loop.steps:
                grid = draw_grid(state, grid_latents)
                settle()
                grid = np.asarray(grid, np.float32)
                if not np.isfinite(grid).all():
                    raise UserError(not_finite("a sample", step, checkpoints, run_dir))
                journal.samples(step, grid)
            evaluated = loop.evaluate_every is not None and (step % loop.evaluate_every == 0 or step == loop.steps)
            if evaluated and assess is not None:
                settle()
                with journal.pause():
                    journal.evaluation(assess(step, state))
                checkpoints.best = journal.best_step  # before it is saved, and older ones deleted
            if evaluated or step % loop.checkpoint_every == 0 or step == loop.steps:
                settle()
                save()
        settle()
        checkpoints.close()
    if (report := feed.batches.report()) is not None:
        say(report)
    say(
        f"{loop.steps} steps done in {journal.elapsed():.0f} s; pictures: {run_dir / 'samples'}; "
        f"a page with all of it: ganstyle report {run_dir}"
    )
    return state


# ---------------------------------------------------------------------------------------------------------------------
# Devices and the compiled step


def make_mesh(loop: Loop) -> jax.sharding.Mesh:
    """The mesh over the first `loop.devices` devices; UserError where they cannot share the batch or the state."""
    devices = jax.devices()
    if processes.several() and loop.devices not in (None, len(devices)):
        raise UserError(f"--devices is for one process; the {jax.process_count()} together have {len(devices)}")
    if loop.devices is not None and not 1 <= loop.devices <= len(devices):
        raise UserError(f"--devices must be from 1 to the {len(devices)} that are here, got {loop.devices}")
    return mesh_of(devices[: loop.devices], loop)


def mesh_of(devices: Sequence[Any], loop: Loop) -> jax.sharding.Mesh:
    """These devices, whose last axis shares the state if anything does and of which all axes share the batch.

    One axis, or two for `loop.shard_devices`: groups, and the neighbours in each. UserError where they cannot share.
    """
    if loop.batch_size % len(devices):
        raise UserError(
            f"--batch-size {loop.batch_size} cannot be divided among {len(devices)} devices: "
            f"choose a multiple of {len(devices)}, or fewer devices"
        )
    if loop.shard_devices is None:
        return jax.sharding.Mesh(np.asarray(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    if loop.shard_devices < 1 or len(devices) % loop.shard_devices:
        raise UserError(f"--shard-devices {loop.shard_devices} must divide the number of devices, {len(devices)}")
    groups = np.asarray(devices).reshape(-1, loop.shard_devices)
    return jax.sharding.Mesh(groups, ("groups", AXIS), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def by_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """How chunks (rows, batch, ...) lie on the devices."""
    return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))


def abstract_state(method: ModuleType, cfg: Any, key: jax.Array, loop: Loop, mesh: jax.sharding.Mesh) -> Any:
    """The state's shapes and types, and how it lies on the devices: whole on each, or cut with `shard_state`."""

    def placed(x):
        axes = [axis for axis in range(x.ndim) if x.shape[axis] % mesh.shape[AXIS] == 0]
        cut = loop.shard_state and x.size >= SMALLEST_CUT and axes
        longest = max(axes, key=lambda axis: x.shape[axis]) if cut else None
        spec = PartitionSpec(*(AXIS if axis == longest else None for axis in range(x.ndim))) if cut else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, jax.eval_shape(lambda key: method.init(key, cfg), key))


def shardings_of(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)


def evaluation_settings(loop: Loop) -> evaluate.Settings:
    count = loop.evaluate_count
    return evaluate.Settings(loop.evaluate_metrics, loop.evaluate_features, count=count, real_count=count)


def images_per_step(method: ModuleType, cfg: Any, loop: Loop) -> int:
    """Images that one step takes in, over all devices."""
    return loop.batch_size * getattr(method, "batches_per_step", lambda cfg: 1)(cfg)


def make_advance(
    method: ModuleType, cfg: Any, key: jax.Array, loop: Loop, mesh: jax.sharding.Mesh, abstract: Any, feed: "Feed"
) -> Callable:
    """advance(state, stored, chunk, start, count) -> (state, {name: (rows,)}): `count` <= rows training steps at once.

    Step t draws from fold_in(key, t) and sees row t - start of the chunk, so what it computes depends on neither the
    chunk's length nor the count: single steps, remainders and resumed runs all go through this one compiled loop and
    agree bit for bit. The state is donated.
    """

    def steps(state, stored, chunk, start, count, axis_name):
        def one(i, state):
            batch = {name: values[i] for name, values in chunk.items()}
            if stored:
                index = batch.pop("index")
                batch = {name: values[index] for name, values in stored.items()}
            batch["image"] = data_module.to_float(batch["image"])
            return method.train_step(state, batch, jax.random.fold_in(key, start + i), cfg, axis_name)

        def body(i, carry):
            state, log = carry
            state, metrics = one(i, state)
            return state, {name: log[name].at[i].set(metrics[name]) for name in log}

        shapes = jax.eval_shape(lambda state: one(0, state)[1], state)
        log = {name: jnp.zeros((feed.rows, *shape.shape), shape.dtype) for name, shape in shapes.items()}
        return lax.fori_loop(0, count, body, (state, log))

    if loop.parallel == "jit":
        replicated = NamedSharding(mesh, PartitionSpec())

        # The key is closed over, not an argument: it is the same for all steps.
        def advance(state, stored, chunk, start, count):
            with layers.gathering(replicated) if loop.shard_state else contextlib.nullcontext():
                return steps(state, stored, chunk, start, count, None)

        return jax.jit(
            advance,
            in_shardings=(shardings_of(abstract), replicated, by_batch(mesh), replicated, replicated),
            out_shardings=(shardings_of(abstract), replicated),
            donate_argnums=0,
        )
    mapped = jax.pmap(
        lambda state, stored, chunk, start, count: steps(state, stored, chunk, start, count, AXIS),
        axis_name=AXIS,
        in_axes=(None, None, 1, None, None),  # the chunk is (rows, devices, batch / devices, ...)
        out_axes=None,
        devices=list(mesh.devices),
        donate_argnums=0,
    )
    return processes.on_local_arrays(mapped, mesh) if processes.several() else mapped


class Feed:
    """Chunks of `rows` batches for `advance`: indices into a set that lives on the device, or streamed images."""

    def __init__(self, batches: data_module.Batches, loop: Loop, mesh: jax.sharding.Mesh):
        self.batches, self.loop, self.mesh = batches, loop, mesh
        source = batches.source
        image_bytes = int(np.prod(source.image_shape)) * np.dtype(source.dtype).itemsize
        fits = source.size is not None and source.size * image_bytes <= RESIDENT_BYTES
        if loop.data_on_device == "yes" and source.size is None:
            raise UserError(f"{source.name} is unlimited and cannot live on the device: use --data-on-device auto")
        # Several processes each read their share of the data and no more, unless they are told otherwise.
        alone = not processes.several()
        self.resident = loop.data_on_device == "yes" or (loop.data_on_device == "auto" and fits and alone)
        most = loop.steps_per_dispatch
        self.rows = most if self.resident else max(1, min(most, CHUNK_BYTES // (image_bytes * batches.batch_size)))

    def load(self) -> dict:
        """The set itself, replicated over the devices; nothing for a streamed one."""
        if not self.resident:
            return {}
        self.stored = self.batches.load()
        keep = {name: self.stored[name] for name in ("image", "label") if name in self.stored}
        return jax.tree.map(lambda x: processes.put(x, NamedSharding(self.mesh, PartitionSpec())), keep)

    def stream(self, start: int, stop: int) -> "_Chunks":
        return _Chunks(self, start, stop)

    def real_diversity(self) -> float:
        """`diversity` of the first real images."""
        if self.resident:
            real = self.stored["image"][self.batches.indices(0)]
        else:
            real = next(iter(self.batches.stream(0, 1)))["image"]
        return diversity(data_module.to_float(real))

    def abstract(self) -> tuple[dict, dict]:
        """Shapes of what `load` and the chunks give."""
        source = self.batches.source
        batch = (self.batches.batch_size,)
        rows = (self.rows, self.mesh.size, batch[0] // self.mesh.size)
        rows = rows if self.loop.parallel == "pmap" else (self.rows, *batch)
        spec = jax.ShapeDtypeStruct
        image, labels = (source.image_shape, source.dtype), source.label_names is not None
        if not self.resident:
            chunk = {"image": spec((*rows, *image[0]), image[1])}
            return {}, chunk | ({"label": spec(rows, np.int32)} if labels else {})
        stored = {"image": spec((source.size, *image[0]), image[1])}
        return stored | ({"label": spec((source.size,), np.int32)} if labels else {}), {"index": spec(rows, np.int32)}


class _Chunks:
    """An open `Feed`: called with (step, count) in order, it gives the chunk for `advance`."""

    def __init__(self, feed: Feed, start: int, stop: int):
        self.feed = feed
        self.stream: Iterator | None = None if feed.resident else iter(feed.batches.stream(start, stop))

    def __enter__(self) -> "_Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.stream.close()  # type: ignore[attr-defined]

    def __call__(self, step: int, count: int) -> dict:
        feed = self.feed
        if self.stream is None:
            batches = [{"index": feed.batches.indices(step + i).astype(np.int32)} for i in range(count)]
        else:
            batches = [next(self.stream) for _ in range(count)]
            batches = [{k: batch[k] for k in ("image", "label") if k in batch} for batch in batches]
        chunk = {}
        for name, first in batches[0].items():
            rows = np.zeros((feed.rows, *first.shape), first.dtype)
            for i, batch in enumerate(batches):
                rows[i] = batch[name]
            chunk[name] = rows
        if feed.loop.parallel == "pmap":  # which takes what this process has
            here = len(feed.mesh.local_devices)
            return {name: x.reshape(feed.rows, here, x.shape[1] // here, *x.shape[2:]) for name, x in chunk.items()}
        return processes.joined(chunk, by_batch(feed.mesh))


def with_weights_of(init_from: Path, method: ModuleType, cfg: Any, state: Any) -> Any:
    """`state` with the weights of another run; its step and optimizer states (fields step, opt_state) stay new."""
    other = runs.load(init_from).state
    if jax.tree.map(jnp.shape, other) != jax.tree.map(jnp.shape, state):
        raise UserError(f"the weights in {init_from} are those of another network than {cfg}")

    def choose(path, new, old):
        fresh = any(getattr(key, "name", getattr(key, "key", None)) in ("step", "opt_state") for key in path)
        return new if fresh else processes.put(old, new.sharding)

    return jax.tree_util.tree_map_with_path(choose, state, other)


# ---------------------------------------------------------------------------------------------------------------------
# The run folder


def check_run_dir(run_dir: Path, loop: Loop) -> dict | None:
    """The earlier description of a run that may go on here, None in a new folder; UserError if it may not."""
    if not (run_dir / "run.json").exists():
        if loop.resume == "required":
            raise UserError(f"{run_dir} holds no run to resume; use --resume auto to begin where there is none")
        return None
    if loop.dry_run:
        return None
    if loop.resume == "never":
        raise UserError(f"{run_dir} already holds a run: choose another --run-dir, or --resume auto to go on with it")
    return runs.read(run_dir)


class Journal:
    """metrics.jsonl, TensorBoard, sample grids, the progress bar, and the alarm for collapse.

    Of several processes only the first one's writes anything; the others' keep time.
    """

    def __init__(self, run_dir: Path, loop: Loop, step: int, real_diversity: float, started: float):
        self.run_dir, self.loop, self.real_diversity, self.started = run_dir, loop, real_diversity, started
        self.step, self.window, self.window_start = step, [], time.perf_counter()
        self.last = self.window_start
        self.first, self.untimed = True, 0
        self.accuracy = 0.0
        self.alarmed = False
        self.collapsed = False  # alarmed twice in a row
        self.metrics = run_dir / "metrics.jsonl"
        self.writes = processes.is_first()
        self.tensorboard = None
        if self.writes:
            drop_lines_after(self.metrics, self.step)
            drop_lines_after(run_dir / "evaluations.jsonl", self.step)
        self.best_step = runs.best_step(run_dir)

    def __enter__(self) -> "Journal":
        from tqdm import tqdm

        how = {"unit": "step", "dynamic_ncols": True, "smoothing": 0.1, "disable": not self.writes}
        # "compiling" until the first step is done
        self.bar = tqdm(desc="compiling", total=self.loop.steps, initial=self.step, **how)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.tensorboard is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self.tensorboard.close()

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def record(self, first: int, metrics: dict, callback: Callable[[int, dict], None] | None) -> float:
        """Takes in the metrics of finished steps, {name: (count,)}; returns the seconds since the last call."""
        count = len(next(iter(metrics.values())))
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        if self.writes:
            self.window.append(metrics)
        if self.first:
            self.first = False
            self.bar.set_description_str("")
            if self.writes:
                self.bar.write(f"first training step after {self.elapsed():.1f} s", file=sys.stderr)
            self.window_start, self.untimed = now, count  # images/s without compilation
        self.bar.update(count)
        step = first + count
        if self.writes and (step % self.loop.log_every == 0 or step == self.loop.steps):
            self._log(step, now, callback)
        return seconds

    def _log(self, step: int, now: float, callback: Callable[[int, dict], None] | None) -> None:
        values = {name: np.concatenate([metrics[name] for metrics in self.window]) for name in self.window[0]}
        means = {name: float(of_steps.mean(dtype=np.float64)) for name, of_steps in values.items()}
        steps = len(next(iter(values.values())))
        rate = (steps - self.untimed) * self.loop.batch_size / max(now - self.window_start, 1e-9)
        self.window, self.window_start, self.untimed = [], now, 0
        if {"accuracy/real", "accuracy/fake"} <= means.keys():
            self.accuracy = min(means["accuracy/real"], means["accuracy/fake"])
        line = {"step": step, **means, "images_per_second": round(rate, 2)}
        with open(self.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")
        self._to_tensorboard(step, {name: value for name, value in line.items() if name != "step"})
        self.bar.set_postfix_str(
            " ".join(f"{name} {value:.3g}" for name, value in means.items() if name.startswith("loss"))
            + f" {rate:.0f} images/s"
        )
        if callback is not None:
            callback(step, line)

    def samples(self, step: int, pictures: np.ndarray) -> None:
        """Saves the grid and looks for collapse."""
        if not self.writes:
            return
        image_files.save_grid(self.run_dir / "samples" / f"{step:06d}.png", pictures)
        relative_diversity = diversity(pictures) / max(self.real_diversity, 1e-6)
        line: dict[str, Any] = {"step": step, "diversity": round(relative_diversity, 4)}
        picture = image_files.to_uint8(image_files.grid(pictures))
        self._to_tensorboard(step, {"diversity": relative_diversity, "samples": picture})
        warning = collapse_warning(relative_diversity, self.accuracy)
        if warning is not None:
            line["warning"] = warning
            if not self.alarmed:
                self.bar.write(f"warning at step {step}: {warning}", file=sys.stderr)
        self.collapsed = warning is not None and self.alarmed
        self.alarmed = warning is not None  # said again only after it was over
        with open(self.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")

    def evaluation(self, record: dict) -> None:
        """Keeps a record of evaluate.py's."""
        if not self.writes:
            return
        runs.add_evaluation(self.run_dir, record)
        self.best_step = runs.best_step(self.run_dir)
        numbers = runs.numbers_of(record)
        self._to_tensorboard(record["step"], {f"evaluation/{name}": value for name, value in numbers.items()})
        found = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.bar.write(f"step {record['step']}: {found}; best so far: step {self.best_step}", file=sys.stderr)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What is done within counts as neither a step's time nor an image's."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.last, self.window_start = self.last + seconds, self.window_start + seconds

    def _to_tensorboard(self, step: int, values: dict[str, float | np.ndarray]) -> None:
        """Appends scalars and pictures, (h, w, c) uint8, to the event file."""
        # Imported after the first step, because it is slow. Not tensorboardX's SummaryWriter: it writes in a thread of
        # its own, which dies on a full disk without a word, and the run then waits for ever at its full queue.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        if self.tensorboard is None:
            (self.run_dir / "tensorboard").mkdir(parents=True, exist_ok=True)
            self.tensorboard = EventsWriter(str(self.run_dir / "tensorboard" / "events"))
            start = SessionLog(status=SessionLog.START)  # hides what an earlier process logged past this step
            self.tensorboard.write_event(Event(wall_time=time.time(), step=self.step + 1, session_log=start))
        for name, value in values.items():
            image = isinstance(value, np.ndarray)
            entry = summary.image(name, value, dataformats="HWC") if image else summary.scalar(name, value)
            self.tensorboard.write_event(Event(wall_time=time.time(), step=step, summary=entry))
        self.tensorboard.flush()


def diversity(pictures: np.ndarray) -> float:
    """How much the pictures of a batch differ: each value's standard deviation over the batch, on average."""
    return float(np.asarray(pictures, np.float64).std(axis=0).mean())


def collapse_warning(relative_diversity: float, accuracy: float) -> str | None:
    """What looks like collapse, in words, or None.

    relative_diversity: of a grid of samples, over that of real images; 1 when all is well. accuracy: the lower of the
    discriminator's on real and on generated images, since the last line of the log. Alone it says little: on MNIST
    it reaches 1 for hundreds of steps while the digits go on getting better. It counts where the pictures are also
    alike, for then the discriminator knows them by what they share.
    """
    if relative_diversity < 0.1 or (relative_diversity < 0.4 and accuracy > 0.99):
        return (
            f"the samples are too much alike (diversity {relative_diversity:.3f} of the data's, the lower of the "
            f"discriminator's accuracies {accuracy:.3f}): the generator has collapsed, unless it has only begun to "
            "learn and more steps help. Go back to an earlier checkpoint, or try "
            "--augment color,translation, --instance-noise 0.1, --r1 1, or a lower --generator-learning-rate"
        )
    return None


def check_finite(metrics: dict, first: int, checkpoints: Checkpoints, run_dir: Path) -> None:
    """UserError naming the first step and metric that is not finite."""
    bad = [(int(np.flatnonzero(~np.isfinite(v))[0]), name) for name, v in metrics.items() if not np.isfinite(v).all()]
    if bad:
        i, name = min(bad)
        raise UserError(not_finite(f"{name} became {metrics[name][i]}", first + i + 1, checkpoints, run_dir))


def not_finite(what: str, step: int, checkpoints: Checkpoints, run_dir: Path) -> str:
    checkpoints.wait()
    last = checkpoints.steps()[-1:]
    good = f"the last good checkpoint is step {last[0]} in {run_dir}" if last else "no checkpoint was saved before"
    return f"{what} is not finite at step {step}; {good}. Try lower learning rates, --clip-norm 1 or --dtype float32"


def collapse_report(step: int, checkpoints: Checkpoints, run_dir: Path) -> str:
    checkpoints.wait()
    steps = checkpoints.steps()
    kept = f"{run_dir} has the checkpoints {', '.join(map(str, steps))}" if steps else "no checkpoint was saved before"
    best = f", of which {checkpoints.best} was the best" if checkpoints.best in steps else ""
    return f"stopped at step {step}, because the generator has collapsed, as {run_dir / 'samples'} shows; {kept}{best}"


def drop_lines_after(path: Path, step: int) -> None:
    """Removes from a metrics.jsonl the lines of steps that will be done again, and a line cut off by a kill."""
    from ganstyle_jax.files import atomic_path

    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept))


class StopSignals:
    """Within its block, SIGTERM and SIGINT are noted in `number` instead of ending the program at once."""

    def __init__(self):
        self.number = 0

    def __enter__(self) -> "StopSignals":
        self.before = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._note)
        except ValueError:
            pass  # not the main thread: whoever runs us handles signals
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.number:
            raise KeyboardInterrupt  # asked twice: stop now
        self.number = number
        say(f"{signal.Signals(number).name} received: finishing what is under way, then saving")


def say(text: str) -> None:
    """A line for the person at the terminal, past the progress bar."""
    if processes.is_first():
        print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# --dry-run


def dry_run_report(method: ModuleType, cfg, loop: Loop, description: dict, abstract, advance, feed: Feed) -> str:
    """Resolved settings, parameters by network, and memory and FLOPs of the compiled step."""
    stored, chunk = feed.abstract()
    scalar = jax.ShapeDtypeStruct((), np.int32)
    compiled = advance.lower(abstract, stored, chunk, scalar, scalar).compile()
    lines = [json.dumps({k: description[k] for k in ("method", "config", "data", "loop", "devices")}, indent=1)]
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        names = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
        if "params" in names:
            counts[names[0]] = counts.get(names[0], 0) + leaf.size
    lines += [f"parameters of {name}: {count:,}" for name, count in counts.items()]
    memory = compiled.memory_analysis()
    if memory is not None:
        arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        total = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
        lines.append(
            f"memory of each device: {total / 2**20:,.1f} MiB "
            f"({arguments / 2**20:,.1f} for state and data, {temporary / 2**20:,.1f} temporary)"
        )
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    if cost and "flops" in cost:
        # XLA counts the loop's body once, which is one training step.
        lines.append(f"FLOPs of a step on each device: {cost['flops'] / 1e9:,.4g} G")
    return "\n".join(lines)
