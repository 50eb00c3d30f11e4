"""The estimate of memory against what XLA plans, and what is done where there is too little of it."""

import dataclasses
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from ganstyle_jax.features import vgg
from ganstyle_jax.style import gatys, memory

WIDE = vgg.VGG(((32, 32), (64, 64), (128,)))
CFG = gatys.Config(
    size=128, content_layers=("relu3_1",), style_layers=("relu1_1", "relu2_1", "relu3_1"), optimizer="adam"
)
FIRES = dataclasses.replace(CFG, content_layers=("fire5",), style_layers=("relu1", "fire2", "fire4", "fire6"))
LBFGS = dataclasses.replace(CFG, optimizer="lbfgs")
CASES = {
    "plain": (WIDE, CFG, {}),
    "compact": (vgg.COMPACT, gatys.Config(size=128, optimizer="adam"), {}),
    "lbfgs": (WIDE, LBFGS, {}),
    "remat": (dataclasses.replace(WIDE, remat=True), CFG, {}),
    "bfloat16": (dataclasses.replace(WIDE, dtype="bfloat16"), CFG, {}),
    "odd": (dataclasses.replace(WIDE, padding="reflect", ceil_mode=True), dataclasses.replace(CFG, size=127), {}),
    "fires": (vgg.SqueezeNet(), FIRES, {}),
    "tiles": (WIDE, dataclasses.replace(LBFGS, tile=64, memory=5), {}),
    "rows": (dataclasses.replace(WIDE, platform="xla"), CFG, {"rows": 4}),
    "regions": (WIDE, CFG, {"regions": 3}),
    "together": (WIDE, CFG, {"together": True}),
}


def planned(network: vgg.Network, cfg: gatys.Config, rows: int = 1, regions: int = 0, together: bool = False) -> float:
    """Bytes that XLA plans on a device for `gatys.advance`, for one image of 4:3."""
    mesh = Mesh(np.asarray(jax.devices()[:rows]), ("rows",)) if rows > 1 else None
    shape = gatys.fitted_shape((3, 4), cfg.size)
    picture = np.zeros((*shape, 3), np.float32)
    columns = np.arange(shape[1]) * regions // shape[1]
    masks = [np.broadcast_to(np.float32(columns == i), shape) for i in range(regions)] or None
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(network.init, jax.random.key(0)))
    styles = [picture] * max(1, regions)
    targets = gatys.make_targets(network, params, picture, styles, cfg, content_masks=masks, mesh=mesh)
    image = targets.canvas.put(picture)
    if together:
        targets, image = jax.tree.map(lambda x: jnp.stack([x, x]), (targets, image))
    at = gatys.start(image, jnp.zeros(image.shape[:-3]), jnp.zeros_like(image), cfg, canvas=targets.canvas)
    plan = gatys.advance.lower(network, params, targets, at, np.int32(9), cfg).compile().memory_analysis()
    held = plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held / len(jnp.atleast_1d(at.value))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("plain", "compact", "lbfgs", "tiles", "rows") else pytest.mark.slow)
        for name in CASES
    ],
)
def test_the_estimate_lies_above_the_plan_but_not_far(name):
    network, cfg, how = CASES[name]
    need = memory.needed(network, cfg, gatys.fitted_shape((3, 4), cfg.size), **how)
    assert 1 <= need / planned(network, cfg, **how) <= 1.8


def test_line_searches_of_many_pictures_take_more():
    """Not compared with the plan from above, since most of it is what vmap makes of a branch."""
    together = memory.needed(WIDE, LBFGS, (96, 128), together=True)
    assert together >= planned(WIDE, LBFGS, together=True)
    assert together > memory.needed(WIDE, LBFGS, (96, 128))


def test_what_needs_less():
    def needed(network=vgg.COMPACT, shape=(1500, 2000), rows=1, **options) -> int:
        return memory.needed(network, gatys.Config(**options), shape, rows)

    assert needed(shape=(750, 1000)) < needed() / 3.5
    assert needed(optimizer="adam") < needed(memory=3) < needed()
    assert needed(optimizer="adam", tile=256) < needed(optimizer="adam", tile=1024) < needed(optimizer="adam")
    assert needed(optimizer="adam", rows=8) < needed(optimizer="adam", rows=2) < needed(optimizer="adam")
    assert needed(averaging=0.9) > needed() and needed(style_scale=2.0, optimizer="adam") > needed(optimizer="adam")
    assert needed(vgg.VGG19) > 2 * needed()


def test_what_needs_less_where_it_is_not_a_cpu(monkeypatch):
    cfg, shape = gatys.Config(optimizer="adam"), (1024, 1024)
    usual = memory.needed(vgg.VGG19, cfg, shape)
    cheap = {"remat": True, "dtype": "bfloat16"}
    for option, value in cheap.items():
        assert memory.needed(dataclasses.replace(vgg.VGG19, **{option: value}), cfg, shape) > 0.95 * usual
    monkeypatch.setattr(memory, "on_cpu", lambda: False)
    for option, value in cheap.items():
        assert memory.needed(dataclasses.replace(vgg.VGG19, **{option: value}), cfg, shape) < 0.7 * usual


def test_free_memory_of_devices(monkeypatch):
    monkeypatch.setattr(memory, "free_on_host", lambda: 800)

    def device(platform: str, stats: dict[str, int] | None):
        return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)

    assert memory.available([device("cpu", None)]) == 800
    assert memory.available([device("cpu", None)] * 8) == 100  # pretend devices
    gpus = [device("gpu", {"bytes_limit": 70, "bytes_in_use": 20}), device("gpu", {"bytes_limit": 90})]
    assert memory.available(gpus) == 50
    assert memory.available([device("other", None)]) == 800
    monkeypatch.undo()
    assert 1e6 < memory.free_on_host() < 2**50  # bytes, on a machine that may have little left


# ---------------------------------------------------------------------------------------------------------------------
# What is done


def test_one_piece_where_it_fits_then_the_largest_tiles():
    cfg, shape = gatys.Config(size=3000, optimizer="adam"), (3000, 3000)
    need = {
        tile: memory.needed(vgg.COMPACT, dataclasses.replace(cfg, tile=tile), shape) for tile in (0, 2048, 512, 256)
    }
    assert memory.fit(vgg.COMPACT, cfg, shape, need[0]) == (cfg, 1)
    assert memory.fit(vgg.COMPACT, cfg, shape, 3 * need[0] + 1)[1] == 3
    for tile in (2048, 512, 256):
        assert memory.fit(vgg.COMPACT, cfg, shape, need[tile])[0].tile == tile
    with pytest.raises(memory.DoesNotFitError):
        memory.fit(vgg.COMPACT, cfg, shape, need[256] - 1)


def test_fewer_pictures_together_where_their_line_searches_need_more():
    limit = 4 * memory.needed(vgg.COMPACT, gatys.Config(), (512, 512))
    assert memory.fit(vgg.COMPACT, gatys.Config(), (512, 512), limit)[1] in (2, 3)


def test_what_does_not_fit_is_told_what_would():
    shape, limit = (6000, 8000), 8 * 10**9
    with pytest.raises(memory.DoesNotFitError) as caught:
        memory.fit(vgg.COMPACT, gatys.Config(size=8000), shape, limit)
    message = str(caught.value)
    assert re.match(
        r"8000 x 6000 pixels need about [\d.]+ GB of memory in tiles of 256, and 8 GB are free: --size", message
    )
    fits = re.search(r"--size (\d+) fits", message)
    assert fits and 256 < int(fits[1]) < 8000
    larger = re.search(r"--size (\d+) with --optimizer adam fits", message)
    assert larger and int(fits[1]) < int(larger[1]) < 8000
    for size, enough in ((int(fits[1]), True), (int(fits[1]) + 1, False)):
        try:
            memory.fit(vgg.COMPACT, gatys.Config(size=size), gatys.fitted_shape(shape, size), limit)
            assert enough
        except memory.DoesNotFitError:
            assert not enough


@pytest.mark.parametrize(
    "network, cfg, limit, advice",
    [
        (vgg.COMPACT, gatys.Config(), 26 * 10**9, ["--memory 3 needs", "--optimizer adam needs", "--size"]),
        (vgg.COMPACT, gatys.Config(optimizer="adam", tile=2048), 16 * 10**9, ["--tile 256 needs", "--size"]),
        (vgg.COMPACT, gatys.Config(), 10**4, ["even a small picture does not fit"]),
        (vgg.SqueezeNet(), FIRES, 10**9, ["--size"]),
        (vgg.VGG19, gatys.Config(tile=2048), 10**9, ["--size", "with --optimizer adam fits"]),
    ],
)
def test_advice_names_only_what_fits(network, cfg, limit, advice):
    with pytest.raises(memory.DoesNotFitError) as caught:
        memory.fit(network, cfg, (6000, 8000), limit)
    given = str(caught.value).split("are free: ")[1]
    assert all(part in given for part in advice) and given.count(";") == len(advice) - 1
    assert all(float(needs) <= limit / 1e9 for needs in re.findall(r"needs ([\d.]+) GB", given))


def test_what_cannot_be_cut():
    with pytest.raises(ValueError, match="only a network laid out like VGG"):
        memory.fit(vgg.SqueezeNet(), dataclasses.replace(FIRES, tile=64), (128, 128), 10**12)
    with pytest.raises(ValueError, match="not both"):
        memory.fit(WIDE, dataclasses.replace(CFG, tile=64), (128, 128), 10**12, rows=4)


def test_memory_that_a_control_group_leaves(tmp_path):
    membership, job = tmp_path / "cgroup", tmp_path / "root" / "slurm" / "job"
    job.mkdir(parents=True)
    assert memory.free_in_groups(membership, tmp_path / "root") == math.inf  # no such file: another system
    membership.write_text("0::/slurm/job\n")
    assert memory.free_in_groups(membership, tmp_path / "root") == math.inf
    for folder, most, current in ((job, "max", 500), (job.parent, "1000", 500)):
        (folder / "memory.max").write_text(most + "\n")
        (folder / "memory.current").write_text(f"{current}\n")
        (folder / "memory.stat").write_text("anon 400\ninactive_file 100\n")
    assert memory.free_in_groups(membership, tmp_path / "root") == 600
    (job / "memory.max").write_text("300\n")
    assert memory.free_in_groups(membership, tmp_path / "root") == 0
