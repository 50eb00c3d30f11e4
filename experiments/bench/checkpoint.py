"""Times how long a checkpoint takes to save and to restore, against `torch.save` and `torch.load`.

    python experiments/bench/checkpoint.py --json checkpoint.json

Both save the same arrays: the state of a DCGAN in training, with weights, statistics, averaged weights and both
optimizers' moments. Ours is `Checkpoints.save` as training calls it: it returns once the state is copied
("blocks training"), and a thread writes the files, their SHA-256 sums, and renames them ("on disk"). PyTorch's is
`torch.save` into a file that is synced (fsync) and then renamed, which is the least that survives a kill at any moment;
it blocks training for all of that time, and keeps no sums. Ours restores after it has checked the sums; PyTorch's loads
with `weights_only` and copies into the tensors that training holds. Files come from the system's cache on both sides.
They work in turn; the first round does not count. What comes back must equal what was saved, bit for bit. Needs PyTorch
beside JAX. A minute on two cores.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is saved, and how often."""

    image_size: int = 64  # pixels of the DCGAN
    width: int = 64  # channels of its finest hidden layer
    rounds: int = 7
    folder: Path | None = None  # on the disk that is to be timed; by default where temporary files go
    json: Path | None = Path("checkpoint.json")  # file for the record; a bare name goes into experiments/results/


def main(bench: Bench) -> dict[str, Any]:
    """Measures and writes the record, which is returned."""
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "orbax-checkpoint", "numpy", "torch")),
        "settings": {k: v if isinstance(v, int) else str(v) for k, v in dataclasses.asdict(bench).items()},
    }
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        record |= measure(bench, Path(folder))
    for name, seconds in record["medians"].items():
        machine.say(f"{name}: {1e3 * seconds:.4g} ms")
    if bench.json is not None:
        machine.say(f"record: {machine.write_record(bench.json, record)}")
    return record


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Bytes of the state, and seconds by what was done."""
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch is not installed: pip install -e '.[parity]'") from None
    import jax

    from ganstyle_jax.gan import dcgan
    from ganstyle_jax.loop.checkpoints import Checkpoints

    cfg = dcgan.Config(image_size=bench.image_size, channels=3, width=bench.width)
    state = jax.block_until_ready(jax.jit(lambda key: dcgan.init(key, cfg))(jax.random.key(0)))
    # Random moments: files of zeros would compress.
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(state))))
    state = jax.tree.map(
        lambda x: jax.random.normal(next(keys), x.shape, x.dtype) if x.dtype == np.float32 else x, state
    )
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    tensors = {
        jax.tree_util.keystr(path): torch.from_numpy(np.array(x)) for path, x in jax.tree.leaves_with_path(state)
    }
    seconds: dict[str, list[float]] = {}

    def timed(name: str, start: float) -> None:
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    checkpoints, file = Checkpoints(folder / "ours", keep=1), folder / "theirs.pt"

    def save_ours(step: int) -> None:
        start = time.perf_counter()
        checkpoints.save(step, state)
        timed("ours, save blocks training", start)
        checkpoints.wait()
        timed("ours, save on disk", start)

    def save_theirs(step: int) -> None:
        start = time.perf_counter()
        with open(file.with_suffix(".new"), "wb") as new:
            torch.save(tensors, new)
            new.flush()
            os.fsync(new.fileno())
        file.with_suffix(".new").replace(file)
        timed("PyTorch, save", start)

    def restore_ours(step: int) -> None:
        start = time.perf_counter()
        restored = checkpoints.restore(abstract)
        assert restored is not None
        found = jax.block_until_ready(restored[1])
        timed("ours, restore", start)
        if restored[0] != step or not all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(state))):
            raise UserError("ours does not restore what it saved: there is nothing to time")

    def restore_theirs(step: int) -> None:
        held = {name: torch.empty_like(x) for name, x in tensors.items()}
        start = time.perf_counter()
        for name, x in torch.load(file, weights_only=True).items():
            held[name].copy_(x)
        timed("PyTorch, restore", start)
        if not all(torch.equal(held[name], x) for name, x in tensors.items()):
            raise UserError("PyTorch does not restore what it saved: there is nothing to time")

    turns: tuple[Callable[[int], None], ...] = (save_ours, save_theirs, restore_ours, restore_theirs)
    with checkpoints:
        for step in range(bench.rounds + 1):
            for turn in turns:
                turn(step)
    seconds = {name: of[1:] for name, of in seconds.items()}
    return {
        "bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "seconds": seconds,
        "medians": {name: statistics.median(of) for name, of in seconds.items()},
    }


if __name__ == "__main__":
    with flags.errors_for_people():
        main(tyro.cli(Bench, description=__doc__))
