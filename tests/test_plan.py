"""Plans for TPUs that are not here: by their compiler where libtpu is installed, and the arithmetic anywhere."""

import dataclasses
import importlib.util
import re

import jax
import pytest

from ganstyle_jax import cli
from ganstyle_jax.features import vgg
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import plan, train
from ganstyle_jax.style import gatys
from ganstyle_jax.style import plan as style_plan

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install -e '.[tpu-plan]'",
)
SMALL = dcgan.Config(image_size=32, width=16, channels=1, batch_norm="running")

PROGRAM = """
  %all-reduce.1 = (f32[4,4,3,64]{3,2,1,0:T(8,128)}, f32[64]{0}) all-reduce(%a, %b), channel_id=1
  %all-reduce-start = f32[128]{0} all-reduce-start(%c), channel_id=2
  %all-reduce-done = f32[128]{0} all-reduce-done(%all-reduce-start)
  %start = (bf16[2,8]{1,0}, bf16[2,8]{1,0}, u32[], u32[]) collective-permute-start(%d)
  %done = bf16[2,8]{1,0} collective-permute-done(%start)
  %g = (f32[4]{0}, f32[32]{0}) all-gather-start(%e), dimensions={0}
  %fusion = f32[8]{0} fusion(%all-reduce.1), calls=%all-reduce-fusion
"""


def test_collectives_are_read_from_a_program():
    expected = [("all-reduce", 4 * (4 * 4 * 3 * 64 + 64)), ("all-reduce", 512), ("collective-permute", 32)]
    assert plan.collectives(PROGRAM) == [*expected, ("all-gather", 128)]


def test_estimate_by_hand():
    chip = plan.Chip("a chip", flops=100.0, memory=50, bandwidth=10.0, links=5.0)
    made = plan.Plan(4, 10, 20, flops=300.0, traffic=20.0, collectives=(("all-reduce", 5), ("all-gather", 10)))
    time = plan.estimate(made, chip)
    assert (time.arithmetic, time.memory, time.exchange) == (3.0, 2.0, 4.0)  # an all-reduce moves its bytes twice
    assert time.step == 7.0 and time.efficiency == 3 / 7
    assert plan.estimate(dataclasses.replace(made, chips=1), chip).efficiency == 1
    plan.check_memory(made, chip, "more chips")
    with pytest.raises(UserError, match="5e-08 GB of memory, and 6e-08 GB are needed: more chips"):
        plan.check_memory(dataclasses.replace(made, temporary=50), chip, "more chips")
    assert "1 all-reduce" in plan.report(made, chip, "a step")


@pytest.mark.parametrize("name", ["v5e", "v9:2x4", "v5e:2by4", "2x4"])
def test_topologies_that_have_no_such_name(name):
    with pytest.raises(UserError, match="--topology must be such as v5e:2x4"):
        plan.topology_devices(name)


@pytest.fixture(scope="module")
def chips():
    return plan.topology_devices("v5e:2x4")[1]


def planned(network, cfg, shape, chips) -> plan.Plan:
    lowered = style_plan.lower(network, cfg, shape, chips)
    return plan.plan_lowered(lowered.lowered, len(chips), lowered.kept)


def kinds(made: plan.Plan) -> set[str]:
    return {kind for kind, _ in made.collectives}


@needs_libtpu
@pytest.mark.slow
def test_training_reduces_each_gradient_once_and_gathers_nothing(chips):
    made = plan.plan_training(dcgan, SMALL, train.Loop(batch_size=64), chips)
    assert kinds(made) == {"all-reduce"}
    state = jax.eval_shape(lambda key: dcgan.init(key, SMALL), jax.random.key(0))
    weights = 4 * sum(x.size for x in jax.tree.leaves((state.gen.params, state.disc.params)))
    reduced = sum(size for _, size in made.collectives)
    # Beside the gradients there are the statistics of BatchNorm and the metrics.
    assert weights <= reduced < 1.1 * weights


@needs_libtpu
@pytest.mark.slow
def test_a_sharded_state_takes_less_of_each_chip(chips):
    cfg = dataclasses.replace(SMALL, width=128)
    ways = {"shard_state": False}, {"shard_state": True}, {"shard_state": True, "shard_devices": 2}
    whole, cut, in_pairs = (plan.plan_training(dcgan, cfg, train.Loop(batch_size=8, **way), chips) for way in ways)
    assert cut.arguments < 0.2 * whole.arguments
    assert in_pairs.arguments == pytest.approx(whole.arguments / 2, rel=0.1)
    assert "all-gather" in kinds(cut) and "all-gather" not in kinds(whole)  # of weights, when they are needed


@needs_libtpu
@pytest.mark.slow
def test_rows_talk_to_neighbours_alone(chips):
    cfg = gatys.Config(size=512)
    made = planned(vgg.COMPACT, cfg, (512, 200), chips)
    assert kinds(made) <= {"all-reduce", "collective-permute"}
    rows = planned(vgg.COMPACT, cfg, (512, 200), chips[:2])
    assert made.memory < 0.6 * rows.memory


@needs_libtpu
@pytest.mark.slow
def test_of_shares_that_cannot_be_halved_coarse_colours_alone_are_gathered(chips):
    height, width = 300, 200  # 38 rows on each of eight chips, of which `spread` makes 19, 9.5 ...
    made = planned(vgg.COMPACT, gatys.Config(size=height), (height, width), chips)
    assert kinds(made) <= {"all-reduce", "collective-permute", "all-gather"}
    gathered = sum(size for kind, size in made.collectives if kind == "all-gather")
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
