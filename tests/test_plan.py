"""Plans for TPUs and GPUs that are not here: by their compilers where they are installed; the arithmetic anywhere."""

import dataclasses
import importlib.util
import logging
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from ganstyle_jax import cli
from ganstyle_jax.features import vgg
from ganstyle_jax.gan import dcgan, r3gan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import chips, plan, train
from ganstyle_jax.loop.kernels import Kernel
from ganstyle_jax.style import gatys
from ganstyle_jax.style import plan as style_plan

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install -e '.[tpu-plan]'",
)
SMALL = dcgan.Config(image_size=32, width=16, channels=1, batch_norm="running")

needs_gpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the GPU compiler is not installed: pip install -e '.[gpu-plan]'",
)


def exchange(what: str, size: int) -> Kernel:
    return Kernel(what, "exchange", "", 0, size, what=what)


def test_estimate_by_hand():
    chip = chips.Chip("a chip", flops=100.0, memory=50, bandwidth=10.0, links=5.0)
    kernels = (exchange("all-reduce", 5), exchange("all-gather", 10))
    made = plan.Plan(4, 10, 20, flops=300.0, traffic=20.0, kernels=kernels)
    time = plan.estimate(made, chip)
    assert (time.arithmetic, time.memory, time.exchange) == (3.0, 2.0, 4.0)  # an all-reduce moves its bytes twice
    assert time.step == 7.0 and time.efficiency == 3 / 7
    assert plan.estimate(dataclasses.replace(made, chips=1), chip).efficiency == 1
    plan.check_memory(made, chip, "more chips")
    with pytest.raises(UserError, match="5e-08 GB of memory, and 6e-08 GB are needed: more chips"):
        plan.check_memory(dataclasses.replace(made, temporary=50), chip, "more chips")
    assert "1 all-reduce" in plan.report(made, chip, "a step")


def test_classes_are_planned_for_by_their_number():
    cfg = r3gan.Config(conditional=True, classes=3)
    found = {name: plan.imagined(wanted, cfg.classes) for name, wanted in r3gan.sources(cfg).items()}
    assert found["real"].label_names == ("0", "1", "2") and r3gan.settle(cfg, found).classes == 3
    assert plan.imagined(r3gan.sources(cfg)["real"]).label_names is None


def test_estimate_of_gpus_by_hand():
    """Kernel by kernel at half of the peak and 80 % of the bandwidth, with pauses; a ring over hosts and within one."""
    chip = dataclasses.replace(
        chips.GPUS["h200"], flops=200.0, flops32=20.0, scalar=10.0, bandwidth=100.0, links=64.0, network=1.0
    )
    run = (
        Kernel("conv", "convolution", "", 300.0, 160, "bf16"),  # 3 s of arithmetic, 2 of memory
        Kernel("conv", "convolution", "", 300.0, 160, "f32"),  # 30
        Kernel("product", "product", "", 10.0, 160, "f32", precise=True),  # 2 and 2, twice
        Kernel("add", "other", "jit(f)/while/body/transpose(jvp(G))/norm1/add", 1.0, 800, what="fusion"),  # 10
        exchange("all-reduce", 32),
        exchange("collective-permute", 16),
    )
    run = (*run[:2], dataclasses.replace(run[2], times=2), *run[3:])
    made = plan.Plan(16, 0, 0, 610.0, 1440.0, run, hosts=2)
    found = plan.estimate(made, chip)
    assert found.computing == pytest.approx(3 + 30 + 2 * 2 + 10, abs=1e-4)
    # The ring goes through 8 cards at once, the neighbour through one.
    assert found.exchange == pytest.approx(2 * 15 / 16 * 32 / 8 + 16, abs=1e-3)
    near = plan.estimate(dataclasses.replace(made, hosts=1), chip)
    assert near.exchange == pytest.approx(2 * 15 / 16 * 32 / 64 + 16 / 64, abs=1e-3)
    words = plan.report(made, chip, "a step")
    assert "16 GPUs NVIDIA H200; a step" in words and "2 convolution" not in words
    assert re.search(r"kernels: 7, 2 us apart; convolutions: 1  ?bf16; 1  ?f32", words)
    assert "1  fusion: G/norm1/add, backward" in words


def test_a_step_is_planned_as_it_is_on_average():
    """Of 12 s 8 are in each fourth step only, in whose place the others take 1; an exchange is there as seldom."""
    chip = chips.Chip("a chip", flops=100.0, memory=50, bandwidth=10.0, links=5.0, gpu=chips.GPUS["h200"].gpu)
    chip = dataclasses.replace(chip, bandwidth=chip.bandwidth / plan.BANDWIDTH, scalar=1e9)

    def kernel(seconds, **often):
        return Kernel("add", "other", "", 0.0, 10 * seconds, **often)

    rare = {"times": 1 / 4, "peak": 4}
    run = (kernel(4), kernel(8, **rare), kernel(1, times=3 / 4, peak=0))
    alone = plan.Plan(1, 1, 2, *plan.counted(run), run)
    assert plan.estimate(alone, chip).step == pytest.approx(4 + 8 / 4 + 3 / 4, abs=1e-4)
    assert plan.estimate(alone.dearest_step, chip).step == pytest.approx(12, abs=1e-4)
    assert (alone.traffic, alone.dearest_step.traffic) == (67.5, 120)
    words = plan.report(alone, chip, "a step", images=500)
    assert "estimate: 6.75e+03 ms, 13.5 s for 1,000 images\n" in words
    assert "all but memory is that of an average step; the dearest takes 1.2e+04 ms\n" in words
    run = (*run, exchange("all-reduce", 10), dataclasses.replace(exchange("all-reduce", 40), **rare))
    several = dataclasses.replace(alone, chips=2, kernels=run)
    assert several.collectives == {"all-reduce": (1.25, 20)}
    assert several.dearest_step.collectives == {"all-reduce": (2, 50)}
    assert plan.estimate(several, chip).exchange == pytest.approx(20 / 5, abs=1e-3)
    assert "average" not in plan.report(dataclasses.replace(alone, kernels=run[:1]), chip, "a step")


def test_a_compiler_that_counts_each_branch_in_every_step_is_corrected():
    """As the TPUs' does, and that of CPUs."""

    def step(i, x):
        x = x @ x
        with jax.named_scope("every_4_steps"):
            return lax.cond(i % 4 == 0, lambda x: x @ x @ x, lambda x: x, x)

    side = 64
    made = plan.plan_lowered(jax.jit(step).lower(jnp.int32(0), jnp.zeros((side, side))), jax.devices()[:1])
    assert made.flops == pytest.approx(2 * side**3 * (1 + 2 / 4), rel=1e-3)
    assert made.dearest_step.flops == pytest.approx(2 * side**3 * 3, rel=1e-3)


def test_targets_name_what_the_compiler_is_told():
    target = chips.GPUS["a100"].gpu.target(chips.GPUS["a100"])
    assert re.search(r"core_count: 108\s+fpus_per_core: 64", target)
    assert "cuda_compute_capability { major: 8 minor: 0 }" in target and '"NVIDIA A100 80 GB"' in target
    assert chips.GPUS["a100"].scalar == pytest.approx(19.5e12, rel=1e-2)  # of NVIDIA's data sheet
    assert chips.GPUS["h200"].scalar == pytest.approx(66.9e12, rel=1e-2)


@pytest.mark.parametrize("name", ["v5e", "v9:2x4", "v5e:2by4", "2x4", "h200", "h200:2x8x2", "h300:8"])
def test_topologies_that_have_no_such_name(name):
    with pytest.raises(UserError, match="--topology must be such as v5e:2x4"):
        chips.topology_devices(name)


@pytest.fixture(scope="module")
def tpus():
    return chips.topology_devices("v5e:2x4")[1]


def planned(network, cfg, shape, devices) -> plan.Plan:
    lowered = style_plan.lower(network, cfg, shape, devices)
    return plan.plan_lowered(lowered.lowered, devices, lowered.kept)


def kinds(made: plan.Plan) -> set[str]:
    return set(made.collectives)


@needs_libtpu
@pytest.mark.slow
def test_training_reduces_each_gradient_once_and_gathers_nothing(tpus):
    made = plan.plan_training(dcgan, SMALL, train.Loop(batch_size=64), tpus)
    assert kinds(made) == {"all-reduce"}
    state = jax.eval_shape(lambda key: dcgan.init(key, SMALL), jax.random.key(0))
    weights = 4 * sum(x.size for x in jax.tree.leaves((state.gen.params, state.disc.params)))
    reduced = made.collectives["all-reduce"][1]
    # Beside the gradients there are the statistics of BatchNorm and the metrics.
    assert weights <= reduced < 1.1 * weights


@needs_libtpu
@pytest.mark.slow
def test_a_sharded_state_takes_less_of_each_chip(tpus):
    cfg = dataclasses.replace(SMALL, width=128)
    ways = {"shard_state": False}, {"shard_state": True}, {"shard_state": True, "shard_devices": 2}
    whole, cut, in_pairs = (plan.plan_training(dcgan, cfg, train.Loop(batch_size=8, **way), tpus) for way in ways)
    assert cut.arguments < 0.2 * whole.arguments
    assert in_pairs.arguments == pytest.approx(whole.arguments / 2, rel=0.1)
    assert "all-gather" in kinds(cut) and "all-gather" not in kinds(whole)  # of weights, when they are needed


@needs_libtpu
@pytest.mark.slow
def test_rows_talk_to_neighbours_alone(tpus):
    cfg = gatys.Config(size=512)
    made = planned(vgg.COMPACT, cfg, (512, 200), tpus)
    assert kinds(made) <= {"all-reduce", "collective-permute"}
    rows = planned(vgg.COMPACT, cfg, (512, 200), tpus[:2])
    assert made.memory < 0.6 * rows.memory


@needs_libtpu
@pytest.mark.slow
def test_of_shares_that_cannot_be_halved_coarse_colours_alone_are_gathered(tpus):
    height, width = 300, 200  # 38 rows on each of eight chips, of which `spread` makes 19, 9.5 ...
    made = planned(vgg.COMPACT, gatys.Config(size=height), (height, width), tpus)
    assert kinds(made) <= {"all-reduce", "collective-permute", "all-gather"}
    gathered = made.collectives.get("all-gather", (0, 0))[1]
    # Of three channels, from the image at half its size on: a third of its bytes there and back, less what need not be.
    assert gathered < 4 * 3 * height * width / 3


@needs_libtpu
@pytest.mark.slow
def test_command(capsys):
    arguments = ["--topology=v5e:2x2", "--image-size=32", "--width=8", "--batch-size"]
    cli.main(["plan", "dcgan", *arguments, "64"])
    assert "4 chips TPU v5 lite; a training step of 64 images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["plan", "dcgan", *arguments, "66"])
    assert "66 cannot be divided among 4 devices" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # before there is a program
        cli.main(["plan", "dcgan", "--topology=v5e:2x2", "--image-size=16", "--width=8", "--batch-size=67108864"])
    assert re.search(r"a chip has too little memory .*: take more chips, --shard-state", capsys.readouterr().err)


# ---------------------------------------------------------------------------------------------------------------------
# What makes the programs of GPUs fast


@pytest.fixture(scope="module")
def gpus():
    return chips.topology_devices("h200:8")[1]


@needs_gpu_compiler
@pytest.mark.slow
def test_a_plain_convolution_and_a_plain_product_of_a_gpu(gpus):
    """Exactly the FLOPs of the definition, and each array once."""
    one = jax.sharding.SingleDeviceSharding(gpus[0])

    def array(*sides):
        return jax.ShapeDtypeStruct(sides, jnp.bfloat16, sharding=one)

    def convolve(x, k):
        return lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    cases = (
        (convolve, (array(8, 32, 32, 64), array(3, 3, 64, 128)), 8 * 30 * 30 * 128),
        (jnp.matmul, (array(256, 512), array(512, 1024)), 256 * 1024),
    )
    for (function, arguments, results), terms in zip(cases, (3 * 3 * 64, 512), strict=True):
        made = plan.plan_lowered(jax.jit(function).lower(*arguments), gpus[:1])
        assert made.flops == 2 * results * terms
        (largest,) = (kernel for kernel in made.kernels if kernel.kind in ("convolution", "product"))
        assert largest.traffic >= 2 * (results + sum(x.size for x in arguments))
        assert largest.dtype == "bf16"


@needs_gpu_compiler
@pytest.mark.slow
def test_a_step_of_dcgan_on_gpus(gpus):
    """bfloat16 throughout and channels last, few kernels and exchanges.

    With statistics of the global batch each layer's are one exchange, forward and backward; each network's gradients
    are one more.
    """
    cfg = dcgan.Config(image_size=64, channels=3, dtype="bfloat16")
    alone = plan.plan_training(dcgan, cfg, train.Loop(batch_size=1024), gpus[:1])
    convolutions = plan.convolutions(alone)
    assert set(convolutions) == {f"conv{what} bf16" for what in ("Forward", "BackwardInput", "BackwardFilter")}
    # 4 forward, of which one is of both batches, twice; gradients by pixels of all but the first layer, where real
    # pictures are judged; 4 by weights in each network.
    assert sum(convolutions.values()) == 31
    assert sum(kernel.times for kernel in alone.kernels) <= 215
    assert plan.estimate(alone, chips.GPUS["h200"]).step <= 7.6e-3
    assert not [kernel for kernel in alone.kernels if kernel.what == "select-and-scatter"]
    eight = plan.plan_training(dcgan, cfg, train.Loop(batch_size=8192), gpus)
    assert kinds(eight) == {"all-reduce"} and eight.collectives["all-reduce"][0] <= 22


@needs_gpu_compiler
@pytest.mark.slow
def test_an_evaluation_of_style_transfer_on_gpus(gpus):
    """VGG's forward pass with bias and ReLU in the convolutions; all in bfloat16; rows talk to neighbours."""
    network = dataclasses.replace(vgg.VGG19, dtype="bfloat16")
    cfg = gatys.Config(size=512)
    made = planned(network, cfg, (512, 512), gpus[:1])
    assert plan.convolutions(made) == {"convBiasActivationForward bf16": 13, "convBackwardInput bf16": 13}
    assert 500 * plan.estimate(made, chips.GPUS["h200"]).step <= 1
    assert not [kernel for kernel in made.kernels if kernel.what == "select-and-scatter"]


@needs_gpu_compiler
@pytest.mark.slow
def test_programs_that_must_be_deterministic_compile(gpus):
    lowered = style_plan.lower(vgg.COMPACT, gatys.Config(size=256), (256, 256), gpus[:1])
    lowered.lowered.compile({"xla_gpu_deterministic_ops": True} | plan.GPU_OPTIONS)


@needs_gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize("gpu", sorted(chips.GPUS))
def test_command_for_gpus(gpu):
    """In a process of its own: no word of a driver that is missing."""
    arguments = ["plan", "dcgan", f"--topology={gpu}:2", "--image-size=32", "--width=8"]
    done = subprocess.run(
        [sys.executable, "-m", "ganstyle_jax", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stderr == ""
    assert f"2 GPUs {chips.GPUS[gpu].kind}; a training step of 64 images" in done.stdout
    assert "the 10 dearest kernels" in done.stdout


@needs_gpu_compiler
@pytest.mark.slow
def test_deep_image_prior_is_planned_for_one_chip(capsys):
    cli.main(["plan", "deep-image-prior", "--topology=h200:1", "--size=64", "--channels", "8", "8", "--skip", "4"])
    assert "1 GPU NVIDIA H200; a step of denoise, 64 x 64 pixels" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["plan", "deep-image-prior", "--topology=h200:8"])
    assert "each picture is one chip's: give a topology of one chip, got h200:8" in capsys.readouterr().err


def test_where_there_is_no_gpu_compiler(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the GPU compiler is not installed: pip install -e '.\[gpu-plan\]'"):
        chips.topology_devices("h200:1")


def test_other_words_of_jax_are_heard():
    """A plugin's failure is only kept quiet where it says that there is no driver, on a machine without one."""
    from ganstyle_jax import programs

    def record(text):
        return logging.LogRecord("jax", logging.ERROR, "", 0, text, (), None)

    assert programs._of_interest(record("Something else"))
    silent = not programs._of_interest(record("Jax plugin configuration error: Exception"))
    assert silent != Path("/dev/nvidiactl").exists()
