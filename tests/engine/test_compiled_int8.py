"""The compiled decode program of a model with int8 or 4-bit weights holds no wide copy of one."""

import math
import re
from dataclasses import replace
from typing import Any

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


# The embedding, which files of 4 bits have in floats, is not as large as a weight of a layer.
UNLIKE = replace(CONFIG, vocab_size=1920)


def int8_engine(
    dtype: jnp.dtype,
    config: DecoderConfig = CONFIG,
    kind: str = "int8",
    kv_dtype: str | None = None,
    capacity: int = 2048,
) -> Engine:
    return make_engine(
        shape_of_model(config, dtype, kind, kv_dtype),
        "prompt-lookup",
        num_slots=8,
        capacity=capacity,
        costs=1.0,
        make=two_rungs,
    )


def widened(engine: Engine, compiled: jax.stages.Compiled) -> list[str]:
    """Returns the arrays of floats in memory that are a weight or one layer's part of it."""
    stacks, layers = set(), set()
    for _, leaf in nnx.to_flat_state(engine.params):
        if leaf.dtype in (jnp.int8, jnp.int4):
            # As many numbers as one layer has, sums of rows may be, too.
            if leaf.ndim > 2 and leaf.shape[0] > 1:
                stacks.add(leaf.size)
            layers.add(tuple(sorted(leaf.shape[-2:])))
    # What is computed inside a fusion is not in memory.
    text = compiled.as_text()
    fused = set(re.findall(r" fusion\(.*, calls=(%[\w.-]+)", text))
    parts = re.split(r"\n(?=%|ENTRY)", text)
    outside = [part for part in parts if part.split(" ", 1)[0] not in fused]
    assert 3 < len(outside) < len(parts), "the pattern no longer finds computations"
    found = set(re.findall(r"= ((?:bf16|f32)\[[0-9,]+\])", "\n".join(outside)))
    assert len(found) > 10, "the pattern no longer finds arrays"
    dims = {shape: [int(n) for n in re.findall(r"\d+", shape.partition("[")[2])] for shape in found}
    return sorted(
        shape
        for shape, sizes in dims.items()
        if math.prod(sizes) in stacks or tuple(sorted(n for n in sizes if n > 1)) in layers
    )


def compile_for(generation: str, config: DecoderConfig, **options: Any) -> list[str]:
    with on_device(generation) as sharding:
        engine = int8_engine(jnp.bfloat16, config, **options)
        compiled = engine.lower(sharding).compile()
    if options:
        assert "tpu_custom_call" in compiled.as_text()
    return widened(engine, compiled)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_tpu_v5e(kind: str):
    assert compile_for("v5e", UNLIKE, kind=kind) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kv_dtype"),
    # `test_compiled_int8_cache` has Qwen3-8B with both in int8, and more slots.
    [("int8", None), ("int4", None), ("int4", "int8")],
)
def test_llama_3_8b_with_8_slots_of_4096_on_one_v5e(kind: str, kv_dtype: str | None):
    """It would not compile if it did not fit."""
    options = {"kind": kind, "kv_dtype": kv_dtype, "capacity": 4096}
    assert compile_for("v5e", named_config("llama-3-8b"), **options) == []


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v4", "v5p", "v6e"])
def test_every_tpu(generation: str):
    assert compile_for(generation, CONFIG) == []
