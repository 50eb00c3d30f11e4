"""Memory that the loss of style transfer and its gradient take: in one piece, in tiles, and in rows on several devices.

Paper: Gatys, Ecker & Bethge 2016 (arXiv:1508.06576); nobody's figures are repeated here.
Data: none; pictures are noise, and VGG-19 has random weights, which change neither memory nor time.
Hardware and time: two CPU cores (AMD EPYC), about 10 minutes, and 12 GB of memory for 4096 pixels in one piece.
Expected: experiments/results/large_pictures.json. Loss and gradient are the same in all ways (tests/test_tiles.py); in
    tiles the peak grows only by the pictures themselves, and in rows each device's share falls with their number.
Command: python experiments/large_pictures.py

"process" is the peak of the resident memory of a process that makes the targets and evaluates once, "before" its peak
until it evaluates.
"temporary" is what XLA plans for a device, without arguments, from `compiled.memory_analysis()`.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from ganstyle_jax.commands import flags
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import gatys

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    sizes: tuple[int, ...] = (512, 1024, 2048, 4096)  # pixels, of square pictures
    tile: int = 512  # pixels
    largest_whole: int = 4096  # in one piece up to this size
    rows_size: int = 1024  # pixels, of the picture that devices share by rows
    devices: tuple[int, ...] = (1, 2, 4, 8)  # pretend ones
    json: Path | None = Path("large_pictures.json")  # the record; a bare name goes into experiments/results/
    one: tuple[int, int] | None = None  # internal: measure one size and tile, print the result


def main(settings: Settings) -> None:
    flags.use_cache()
    if settings.one is not None:
        print(json.dumps(peak(*settings.one)))
        return
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "numpy")),
        "tile": settings.tile,
        "compact": {},
        "rows": {},
    }
    for size in settings.sizes:
        for tile in (0, settings.tile):
            if tile or size <= settings.largest_whole:
                # A process for each, because the peak of a process never falls.
                command = [sys.executable, __file__, "--one", str(size), str(tile)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(answer.splitlines()[-1])
                record["compact"][f"{size} {'tiles' if tile else 'whole'}"] = found
                print(size, tile, found, flush=True)
    networks = {"compact": vgg.COMPACT, "vgg19": vgg.VGG19}
    for name, network in networks.items():
        network = dataclasses.replace(network, platform="xla")
        for count in settings.devices:
            mesh = Mesh(np.asarray(jax.devices()[:count]), ("rows",)) if count > 1 else None
            params = network.init(jax.random.key(0))
            compiled = compile_loss(network, params, settings.rows_size, 0, mesh)[0]
            temporary = compiled.memory_analysis().temp_size_in_bytes
            record["rows"][f"{name} {count}"] = {"temporary_mb": round(temporary / 1e6, 1)}
            print(name, count, record["rows"][f"{name} {count}"], flush=True)
    if settings.json is not None:
        machine.write_record(settings.json, record)


def compile_loss(network: vgg.VGG, params: vgg.Params, size: int, tile: int, mesh: Mesh | None) -> tuple[Any, tuple]:
    """Loss and gradient as a program, and arguments for it."""
    cfg = gatys.Config(size=size, tile=tile)
    rng = np.random.default_rng(0)
    picture = rng.uniform(-1, 1, (size, size, 3)).astype(np.float32)
    targets = gatys.make_targets(network, params, picture, [picture[::-1]], cfg, mesh=mesh)

    @jax.jit
    @jax.value_and_grad
    def evaluate(image, params, targets):
        return sum(gatys.loss_terms(network, params, image, targets, cfg).values(), jnp.zeros(()))

    arguments = (targets.canvas.put(picture[:, ::-1]), params, targets)
    return evaluate.lower(*arguments).compile(), arguments


def peak(size: int, tile: int) -> dict[str, float]:
    """With the compact network, in this process."""
    network, params = weights.load("compact")
    assert isinstance(network, vgg.VGG)
    compiled, arguments = compile_loss(network, params, size, tile, None)
    before = machine.peak_bytes()
    start = time.perf_counter()
    loss, _ = jax.block_until_ready(compiled(*arguments))
    seconds = time.perf_counter() - start
    after = machine.peak_bytes()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return {
        "loss": float(loss),
        "seconds": machine.seconds(seconds),
        "process_mb": round(after / 2**20, 1),
        "before_mb": round(before / 2**20, 1),
        "temporary_mb": round(temporary / 1e6, 1),
    }


if __name__ == "__main__":
    # Before JAX looks for devices; one process alone pretends, the others measure.
    if "--one" not in sys.argv:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
