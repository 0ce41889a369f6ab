"""Attention derives tiles and cache places from the lengths once a step, not in every layer."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend import core

from emsjax.engine.packing import PackedBatch
from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config
from emsjax.pallas_kernels.backends import compiling_for

ROWS, SLOTS, CAPACITY, MAX_Q_LEN = 64, 13, 1024, 8
# `query_tiles` calls these two functions, which keep their names in a traced program.
BOOKKEEPING = {"cumsum", "searchsorted"}


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Yields the equations of a program and of all programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def step_of(model_name: str) -> core.Jaxpr:
    """Returns a step of the model, traced for the target platform."""
    config = named_config(model_name)
    graphdef, weights = nnx.split(shape_of_model(config, jnp.dtype("bfloat16")))

    def step(weights: nnx.State, batch: PackedBatch, cache: jax.Array) -> tuple:
        return nnx.merge(graphdef, weights)(batch, cache, max_q_len=MAX_Q_LEN)

    rows = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    starts, lengths = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (SLOTS + 1, SLOTS))
    batch = PackedBatch(rows, rows, rows, rows, starts, lengths)
    cache = nnx.merge(graphdef, weights).cache_spec(SLOTS, CAPACITY)
    return jax.make_jaxpr(step)(weights, batch, cache).jaxpr


def names(jaxpr: core.Jaxpr) -> set[str]:
    """Returns the primitives of a program and the names of the functions that it calls."""
    found = list(equations(jaxpr))
    return {e.primitive.name for e in found} | {str(e.params.get("name")) for e in found}


def shapes(jaxpr: core.Jaxpr) -> set[tuple[int, ...]]:
    """Returns the shapes of a program's inputs."""
    return {variable.aval.shape for variable in jaxpr.invars}


def layers_of(step: core.Jaxpr) -> core.Jaxpr:
    """Returns the body of the loop over the layers, the program's outermost."""
    (layers,) = [equation for equation in step.eqns if equation.primitive.name in ("scan", "while")]
    return layers.params["body_jaxpr" if layers.primitive.name == "while" else "jaxpr"].jaxpr


@pytest.mark.parametrize("model_name", ["smollm2-135m", "opt-125m"])
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_layers_do_no_bookkeeping(platform: str, model_name: str):
    with compiling_for(platform):
        step = step_of(model_name)
    assert names(step) >= BOOKKEEPING, "the names no longer find the bookkeeping"
    body = layers_of(step)
    assert not BOOKKEEPING & names(body)
    # Tiles and places in the cache are both derived from `cu_q_lens`, the only array of its shape.
    # A layer that does not receive it cannot derive them.
    cu_q_lens = (SLOTS + 1,)
    assert cu_q_lens in shapes(step)
    assert cu_q_lens not in shapes(body)


def test_the_cpu_kernels_find_their_work_by_themselves():
    """The program around them cuts no tiles: a layer makes one foreign call for each operation."""
    step = step_of("smollm2-135m")
    assert not BOOKKEEPING & names(step)
    calls = [
        equation.params["target_name"]
        for equation in equations(layers_of(step))
        if equation.primitive.name == "ffi_call"
    ]
    product = "emsjax.layer_matmul.uint16"
    assert calls == [product, "emsjax.ragged_attention.uint16", product, product, product]
