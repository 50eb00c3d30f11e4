# ruff: noqa: E501 - the lines of programs
"""What is read from the text of compiled programs: FLOPs and bytes of what is known by hand."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from ganstyle_jax.gan import stylegan2
from ganstyle_jax.loop import kernels

PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused (p0: f32[64,8], p1: s32[], p2: f32[1,8]) -> f32[64,8] {
  %p0 = f32[64,8]{1,0} parameter(0)
  %p2 = f32[1,8]{1,0} parameter(2)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
  %add = f32[1,8]{1,0} add(%slice, %p2)
  ROOT %update = f32[64,8]{1,0} dynamic-update-slice(%p0, %add, %p1, %zero)
}

%product (a: bf16[16,32], b: bf16[32,8]) -> f32[16,8] {
  %a = bf16[16,32]{1,0} parameter(0)
  %b = bf16[32,8]{1,0} parameter(1)
  %dot = bf16[16,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %wide = f32[16,8]{1,0} convert(%dot)
}

%body (state: (s32[], f32[64,8], bf16[16,32])) -> (s32[], f32[64,8], bf16[16,32]) {
  %state = (s32[], f32[64,8]{1,0}, /*index=2*/bf16[16,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[64,8]{1,0} get-tuple-element(%state), index=1
  %a = bf16[16,32]{1,0} get-tuple-element(%state), index=2
  %row = f32[1,8]{1,0} constant({...})
  %b = bf16[32,8]{1,0} constant({...})
  %fusion = f32[64,8]{1,0} fusion(%x, %i, %row), kind=kLoop, calls=%fused
  %multiplied = f32[16,8]{1,0} fusion(%a, %b), kind=kCustom, calls=%product, metadata={op_name="jit(step)/while/body/jvp(G)/dot"}
  ROOT %out = (s32[], f32[64,8]{1,0}, bf16[16,32]{1,0}) tuple(%i, %fusion, %a)
}

%condition (state: (s32[], f32[64,8], bf16[16,32])) -> pred[] {
  %state = (s32[], f32[64,8]{1,0}, bf16[16,32]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: bf16[2,8,8,3], k: bf16[4,4,3,16], y: bf16[2,4,4,16]) -> bf16[2,4,4,16] {
  %x = bf16[2,8,8,3]{3,2,1,0} parameter(0)
  %k = bf16[4,4,3,16]{3,2,1,0} parameter(1)
  %y = bf16[2,4,4,16]{3,2,1,0} parameter(2)
  %conv = (bf16[2,4,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=4x4 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp(G)/conv"}
  %got = bf16[2,4,4,16]{3,2,1,0} get-tuple-element(%conv), index=0
  %by_k = (bf16[4,4,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=4x4 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %by_x = (bf16[2,3,8,8]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), window={size=4x4 stride=2x2 pad=1_1x1_1}, dim_labels=bf01_01io->b01f, custom_call_target="__cudnn$convBackwardInput"
  %gemm = (f32[16,8]{1,0}, s8[64]{0}) custom-call(%y, %k), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["3"],"rhs_contracting_dimensions":["2"]}}}
  %all-reduce-start = f32[128]{0} all-reduce-start(%got), channel_id=2
  %all-reduce-done = f32[128]{0} all-reduce-done(%all-reduce-start)
  %state = (s32[], f32[64,8]{1,0}, bf16[16,32]{1,0}) tuple(%x, %y, %k)
  %while = (s32[], f32[64,8]{1,0}, bf16[16,32]{1,0}) while(%state), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %copy = bf16[2,4,4,16]{2,3,1,0} copy(%got)
}
"""


def test_a_program_by_hand():
    found = {kernel.name: kernel for kernel in kernels.kernels(PROGRAM)}
    assert list(found) == ["conv", "by_k", "by_x", "gemm", "all-reduce-start", "fusion", "multiplied", "copy"]
    flops = 2 * (2 * 4 * 4 * 16) * (4 * 4 * 3)  # the same of all three
    for name, what in {"conv": "Forward", "by_k": "BackwardFilter", "by_x": "BackwardInput"}.items():
        kernel = found[name]
        assert (kernel.kind, kernel.flops, kernel.dtype, kernel.what) == ("convolution", flops, "bf16", f"conv{what}")
        assert kernel.traffic == 2 * (2 * 8 * 8 * 3 + 4 * 4 * 3 * 16 + 2 * 4 * 4 * 16)
        assert (kernel.channels_last, kernel.times) == (name != "by_x", 1)
    assert found["conv"].place == "jit(step)/jvp(G)/conv"
    assert (found["gemm"].kind, found["gemm"].flops) == ("product", 2 * 16 * 8 * 16)
    assert (found["all-reduce-start"].kind, found["all-reduce-start"].traffic) == ("exchange", 512)
    # Reads a row and what is added, and writes the row in its place; five times.
    assert (found["fusion"].kind, found["fusion"].flops) == ("other", 8)
    assert found["fusion"].traffic == 4 * (8 + 8 + 8) + 4  # and the number of the row
    multiplied = found["multiplied"]
    assert (multiplied.kind, multiplied.flops, multiplied.dtype) == ("product", 2 * 16 * 8 * 32, "bf16")
    assert (multiplied.times, multiplied.looped, found["copy"].looped) == (5, True, False)
    assert found["copy"].traffic == 2 * 2 * (2 * 4 * 4 * 16)


EXCHANGES = """
ENTRY %main (a: f32[4]) -> f32[8] {
  %all-reduce.1 = (f32[4,4,3,64]{3,2,1,0:T(8,128)}, f32[64]{0}) all-reduce(%a, %b), channel_id=1
  %start = (bf16[2,8]{1,0}, bf16[2,8]{1,0}, u32[], u32[]) collective-permute-start(%d)
  %done = bf16[2,8]{1,0} collective-permute-done(%start)
  %g = (f32[4]{0}, f32[32]{0}) all-gather-start(%e), dimensions={0}
}
"""


def test_exchanges_by_hand():
    found = [(kernel.what, kernel.traffic) for kernel in kernels.kernels(EXCHANGES)]
    assert found == [("all-reduce", 4 * (4 * 4 * 3 * 64 + 64)), ("collective-permute", 32), ("all-gather", 128)]


CONDITIONALS = """
%rare (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %inner = f32[8]{0} conditional(%x, %x, %x), branch_computations={%idle, %busy}, metadata={op_name="jit(f)/every_4_steps/cond/branch_1_fun/cond"}
  ROOT %twice = f32[8]{0} add(%inner, %inner)
}

%idle (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

%busy (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %sine = f32[8]{0} sine(%x)
}

%else (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %negative = f32[8]{0} negate(%x)
}

%body (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %cosine = f32[8]{0} cosine(%x)
}

%always (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %loop = f32[8]{0} while(%x), condition=%idle, body=%body, backend_config={"known_trip_count":{"n":"6"}}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %lazy = f32[8]{0} conditional(%x, %x, %x), branch_computations={%else, %rare}, metadata={op_name="jit(f)/every_4_steps/cond"}
  %chosen = f32[8]{0} conditional(%x, %lazy, %lazy), true_computation=%always, false_computation=%idle, metadata={op_name="jit(f)/cond"}
  %all = f32[8]{0} conditional(%x, %chosen, %chosen), branch_computations={%idle, %busy}, metadata={op_name="jit(f)/every_1_steps/cond"}
  ROOT %last = f32[8]{0} exponential(%all)
}
"""


def test_conditionals_by_hand():
    """A scope says how often its own conditional takes the dearest branch; any other always does."""
    found = [(kernel.name, kernel.times, kernel.peak) for kernel in kernels.kernels(CONDITIONALS)]
    lazy = [("sine", 1 / 4, 4), ("twice", 1 / 4, 4), ("negative", 3 / 4, 0)]
    assert found == [*lazy, ("cosine", 6, 1), ("sine", 1, 1), ("last", 1, 1)]


def test_what_stylegan2_does_lazily_is_heard():
    @flax.struct.dataclass
    class Counted:
        step: jax.Array
        x: jax.Array

    def phase(state):
        return dataclasses.replace(state, x=jnp.tanh(state.x @ state.x))

    def loop(state):
        return lax.fori_loop(0, 100, lambda i, state: stylegan2.lazily(16, phase, state), state)

    program = jax.jit(loop).lower(Counted(jnp.int32(0), jnp.zeros((32, 32)))).compile().as_text()
    (product,) = (kernel for kernel in kernels.kernels(program) if kernel.kind == "product")
    assert (product.times, product.peak) == (100 / 16, 16)


def test_what_is_no_program():
    with pytest.raises(ValueError, match="has no ENTRY"):
        kernels.kernels("HloModule nothing")


@pytest.mark.parametrize("batch, side, c, d, size", [(2, 8, 3, 5, 3), (1, 16, 4, 2, 5), (4, 6, 1, 1, 2)])
def test_a_plain_convolution(batch, side, c, d, size):
    """Compiled here: exactly the multiplications and additions that the definition has. test_plan.py has GPUs'."""
    x, kernel = jnp.zeros((batch, side, side, c)), jnp.zeros((size, size, c, d))

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    run = kernels.kernels(jax.jit(convolve).lower(x, kernel).compile().as_text())
    out = side - size + 1
    assert sum(kernel.flops for kernel in run if kernel.kind == "convolution") == 2 * batch * out**2 * d * size**2 * c
