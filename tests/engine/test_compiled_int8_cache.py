"""The compiled decode program with an int8 cache makes no copy of it, as it is or widened."""

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

pytestmark = pytest.mark.usefixtures("no_compile_cache")


def int8_cache_engine(
    dtype: jnp.dtype, config: DecoderConfig = CONFIG, quantize: str | None = None
) -> Engine:
    return make_engine(
        shape_of_model(config, dtype, quantize, "int8"),
        "prompt-lookup",
        num_slots=8,
        capacity=2048,
        costs=1.0,
        make=two_rungs,
    )


def check_nothing_is_widened(engine: Engine, compiled: jax.stages.Compiled) -> None:
    """Checks that no array of floats is as large as one slot's values in one layer."""
    values = engine.cache_spec.values
    slot = values.size // values.shape[0] // values.shape[1]
    kept = {tuple(leaf.shape) for leaf in jax.tree.leaves((engine.params, engine.cache_spec.scale))}
    found = re.findall(r"= (?:bf16|f32)\[([0-9,]+)\]", compiled.as_text())
    assert len(found) > 10, "the pattern no longer finds arrays"
    for text in set(found):
        shape = tuple(map(int, text.split(",")))
        assert shape in kept or not {2048, 16} <= set(shape), f"[{text}]"
        assert shape in kept or jnp.prod(jnp.asarray(shape)) != slot, f"[{text}]"


def compile_for(generation: str, config: DecoderConfig, quantize: str | None = None) -> None:
    with on_device(generation) as sharding:
        engine = int8_cache_engine(jnp.dtype(jnp.bfloat16), config, quantize)
        compiled = engine.lower(sharding).compile()
    check_no_copy_of_the_cache(engine, compiled, "tpu")
    check_nothing_is_widened(engine, compiled)
    if quantize is not None:
        assert widened(engine, compiled) == []


@pytest.mark.parametrize("generation", ["v5e", "v6e"])
def test_tpu(generation: str):
    compile_for(generation, CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3-8b", "qwen3-8b"])
def test_int8_weights_and_cache(name: str):
    compile_for("v5e", named_config(name), "int8")


def test_cpu():
    engine = int8_cache_engine(jnp.dtype(jnp.float32))
    compiled = engine.lower().compile(AS_FOR_USERS)
    check_no_copy_of_the_cache(engine, compiled, "cpu")
