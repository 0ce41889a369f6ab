"""The compiled decode program with an int8 cache makes no copy of it, as it is or widened."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from emsjax.engine.engine import Engine
from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config
from emsjax.models.config import DecoderConfig
from emsjax.pallas_kernels.ahead import on_device
from tests.engine.setup import make_engine
from tests.engine.test_compiled import AS_FOR_USERS, CONFIG, check_no_copy_of_the_cache
from tests.engine.test_compiled_int8 import widened
from tests.ladders import two_rungs

# So many that the rows of prompts do not fit into VMEM: they are written by `update_kv_cache`, and
# those of drafts by `split_heads`.
SLOTS = 32
pytestmark = pytest.mark.usefixtures("no_compile_cache")


def int8_cache_engine(
    dtype: jnp.dtype, config: DecoderConfig = CONFIG, quantize: str | None = None
) -> Engine:
    return make_engine(
        shape_of_model(config, dtype, quantize, "int8"),
        "prompt-lookup",
        num_slots=SLOTS,
        capacity=2048,
        costs=1.0,
        make=two_rungs,
    )


def check_nothing_is_widened(engine: Engine, compiled: jax.stages.Compiled) -> None:
    """Checks that no array of floats holds a slot's tokens of a layer, or more of the cache."""
    values, scale = engine.cache_spec.values, engine.cache_spec.scale
    layers, slots, capacity, *token = values.shape
    sizes = {n * capacity * math.prod(token) for n in (1, slots, layers * slots)}
    weights = {tuple(sorted(leaf.shape[-2:])) for leaf in jax.tree.leaves(engine.params)}
    found = set(re.findall(r"= (?:bf16|f32)\[([0-9,]+)\]", compiled.as_text()))
    assert len(found) > 10, "the pattern no longer finds arrays"
    shapes = [tuple(map(int, text.split(","))) for text in found]
    # Scales that move to VMEM, a few layers at a time, may be as many as the numbers of a slot.
    shapes = [shape for shape in shapes if shape[1:] != scale.shape[1:]]
    # So may the sums over parts of the columns, which a GPU's products add for all rows.
    rows = {rung.capacity for rung in engine.ladder}
    shapes = [shape for shape in shapes if len(shape) != 3 or shape[1] not in rows]
    others = [shape for shape in shapes if tuple(sorted(shape[-2:])) not in weights]
    assert [shape for shape in others if math.prod(shape) in sizes] == []


def compile_for(generation: str, config: DecoderConfig, quantize: str | None = None) -> str:
    """Compiles a decode program, checks it, and returns its text."""
    with on_device(generation) as sharding:
        engine = int8_cache_engine(jnp.dtype(jnp.bfloat16), config, quantize)
        compiled = engine.lower(sharding).compile()
        # The cache's shape depends on the platform.
        check_no_copy_of_the_cache(engine, compiled, "tpu")
        check_nothing_is_widened(engine, compiled)
        if quantize is not None:
            assert widened(engine, compiled) == []
        return compiled.as_text()


@pytest.mark.parametrize("generation", ["v5e", "v6e"])
def test_tpu(generation: str):
    assert "%split_heads" in compile_for(generation, CONFIG)


@pytest.mark.slow
def test_int8_weights_and_cache():
    """Of a real model; `test_compiled_int8` has Llama-3-8B with 4-bit weights and this cache."""
    compile_for("v5e", named_config("qwen3-8b"), "int8")


def test_cpu():
    engine = int8_cache_engine(jnp.dtype(jnp.float32))
    compiled = engine.lower().compile(AS_FOR_USERS)
    check_no_copy_of_the_cache(engine, compiled, "cpu")
