"""The compiled decode program of a model with int8 weights holds no widened copy of one."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from emsjax.engine.engine import Engine
from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config
from emsjax.models.config import DecoderConfig
from emsjax.pallas_kernels.ahead import on_device
from tests.engine.setup import make_engine
from tests.engine.test_compiled import CONFIG
from tests.ladders import two_rungs

pytestmark = pytest.mark.usefixtures("no_compile_cache")


def int8_engine(dtype: jnp.dtype, config: DecoderConfig = CONFIG) -> Engine:
    return make_engine(
        shape_of_model(config, dtype, "int8"),
        "prompt-lookup",
        num_slots=8,
        capacity=2048,
        costs=1.0,
        make=two_rungs,
    )


def widened(engine: Engine, compiled: jax.stages.Compiled) -> list[str]:
    """Returns the arrays of floats in memory that are a weight or one layer's part of it."""
    stacks, layers = set(), set()
    for _, leaf in nnx.to_flat_state(engine.params):
        if leaf.dtype == jnp.int8:
            stacks.add(leaf.size)
            layers.add(tuple(sorted(leaf.shape[-2:])))
    # What is computed inside a fusion is not in memory.
    parts = re.split(r"\n(?=%|ENTRY)", compiled.as_text())
    outside = [part for part in parts if not re.match(r"%[\w.]*fused_computation", part)]
    assert 3 < len(outside) < len(parts), "the pattern no longer finds computations"
    found = set(re.findall(r"= ((?:bf16|f32)\[[0-9,]+\])", "\n".join(outside)))
    assert len(found) > 10, "the pattern no longer finds arrays"
    dims = {shape: [int(n) for n in re.findall(r"\d+", shape.partition("[")[2])] for shape in found}
    return sorted(
        shape
        for shape, sizes in dims.items()
        if math.prod(sizes) in stacks or tuple(sorted(n for n in sizes if n > 1)) in layers
    )


def compile_for(generation: str, config: DecoderConfig) -> list[str]:
    with on_device(generation) as sharding:
        engine = int8_engine(jnp.bfloat16, config)
        compiled = engine.lower(sharding).compile()
    return widened(engine, compiled)


def test_tpu_v5e():
    assert compile_for("v5e", CONFIG) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generation", "name"), [("v4", None), ("v5p", None), ("v6e", None), ("v5e", "llama-3-8b")]
)
def test_every_tpu(generation: str, name: str | None):
    assert compile_for(generation, CONFIG if name is None else named_config(name)) == []
