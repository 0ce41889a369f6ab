"""Launches, bytes moved and copied weights are read from a program's text."""

import jax
import jax.numpy as jnp

from emsjax.plan.copies import copied_weights
from emsjax.plan.loops import computations, layer_bodies, rung_bodies
from emsjax.plan.traffic import Traffic, launches

# Three layers of weights [4, 8], a cache [3, 2, 16, 1, 128], five rows. The down projection reads
# its weights in place, the up projection copies them, and a kernel has the stack as an operand.
PROGRAM = """
%sliced (p.0: f32[3,4,8], p.1: s32[], p.2: f32[5,8]) -> f32[5,4] {
  %p.0 = f32[3,4,8]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = f32[5,8]{1,0:T(8,128)S(1)} parameter(2)
  %same = f32[3,4,8]{2,1,0} bitcast(%p.0)
  %part = f32[1,4,8]{2,1,0} dynamic-slice(%same, %p.1), dynamic_slice_sizes={1,4,8}
  ROOT %dot = f32[5,4]{1,0} dot(%p.2, %part)
}

%only.named (p.3: f32[4,8]) -> f32[8,4] {
  %p.3 = f32[4,8]{1,0} parameter(0)
  ROOT %other = f32[8,4]{0,1} bitcast(%p.3)
}

%layer (t: (s32[])) -> (s32[]) {
  %t = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %stack = f32[3,4,8]{2,1,0} get-tuple-element(%t), index=1
  %x = f32[5,8]{1,0:T(8,128)S(1)} get-tuple-element(%t), index=2
  %cache = f32[3,2,16,1,128]{4,3,2,1,0} get-tuple-element(%t), index=3
  %down = f32[5,4]{1,0} fusion(%stack, %i, %x), kind=kOutput, calls=%sliced
  %copied = f32[1,4,8]{2,1,0} dynamic-slice(%stack, %i), dynamic_slice_sizes={1,4,8}
  %up = f32[5,4]{1,0} dot(%x, %copied)
  %kernel = f32[5,4]{1,0} custom-call(%stack, %cache), custom_call_target="mosaic_gpu"
  ROOT %out = (s32[]) tuple(%i)
}

%rung (r: (s32[])) -> (s32[]) {
  %r = (s32[]) parameter(0)
  %table = f32[4,8]{1,0} get-tuple-element(%r), index=1
  %head = f32[8,4]{1,0:S(1)} fusion(%table), kind=kLoop, calls=%only.named
  %before = f32[3,8,4]{2,1,0} copy(%r)
  ROOT %while.2 = (s32[]) while(%r), body=%layer, metadata={op_name="RUNG/body/while"}
}

%step (s: (s32[])) -> (s32[]) {
  %s = (s32[]) parameter(0)
  ROOT %while.1 = (s32[]) while(%s), body=%rung, metadata={op_name="RUNG"}
}

ENTRY %main (a: (s32[])) -> (s32[]) {
  %a = (s32[]) parameter(0)
  ROOT %while.0 = (s32[]) while(%a), body=%step, metadata={op_name="jit(f)/while"}
}
""".replace("RUNG", "jit(f)/while/body/target/while")
FOUND = computations(PROGRAM)
LAYER, RESULT = 4 * 4 * 8, 4 * 5 * 4  # bytes of a layer's weights and of a product


def test_the_loops_are_found():
    assert rung_bodies(FOUND) == ["rung"]
    assert layer_bodies(FOUND, "rung") == ["layer"]


def test_launches():
    assert launches(FOUND["layer"]) == 4
    assert launches(FOUND["rung"]) == 2, "the loop over the layers is none"


def test_bytes_of_a_layer():
    traffic = Traffic(FOUND, 3, (3, 2, 16, 1, 128))
    index = 4
    fused = LAYER + index + RESULT
    copied = 2 * LAYER + index
    product = LAYER + RESULT
    kernel = LAYER + RESULT  # of the cache nothing, of the stack one layer
    assert traffic.of("layer") == fused + copied + product + kernel


def test_bytes_around_the_layers():
    """The table is read once, through a fusion that only renames it; its result stays on chip."""
    copied = 4 * 3 * 8 * 4
    assert Traffic(FOUND, 3, (3, 2, 16, 1, 128)).of("rung") == LAYER + copied + 4


def test_copied_weights():
    params = {"stack": jax.ShapeDtypeStruct((3, 4, 8), jnp.float32)}
    assert copied_weights(PROGRAM, params) == ["f32[1,4,8]", "f32[3,8,4]"]
    one_copy = PROGRAM.replace("copy(%r)", "add(%r)")
    assert copied_weights(one_copy, params) == ["f32[1,4,8]"]
