"""The real GPU compiler compiles the decode program, which copies neither weights nor caches."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from emsjax.drafters import PromptLookup
from emsjax.drafters.prompt_lookup import MOST_MATCHES
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import Rung
from emsjax.limits import LONG_DRAFT_LENGTH
from emsjax.models.config import DecoderConfig
from emsjax.pallas_kernels import triton_gpus
from emsjax.pallas_kernels.ahead import compile_lowered, compile_on, on_device
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.plan.copies import copied_slices
from emsjax.plan.loops import computations, layer_bodies, rung_bodies
from emsjax.plan.traffic import launches
from tests.engine.switches import SWITCHES
from tests.engine.test_compiled import (
    CONFIG,
    abstract_engine,
    check_no_kernel_is_copied,
    check_no_weight_is_copied,
)
from tests.engine.test_compiled_int8 import UNLIKE, widened
from tests.engine.test_compiled_int8_cache import check_nothing_is_widened, int8_cache_engine
from tests.ladders import one_rung, short_ladder

pytestmark = [pytest.mark.gpu_compiler, pytest.mark.usefixtures("no_compile_cache")]

SIZES = {"f32": 4, "bf16": 2, "f16": 2, "u16": 2, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
LARGE_OPERATIONS = re.compile(r"= (\w+)\[([0-9,]+)\]\S* (?:copy|transpose|convert)\(")


# The most launches a layer, of both rungs. A T4's attention is a loop.
MOST_LAUNCHES = {"h100": 12, "a100": 12, "l4": 15, "b200": 12, "g4": 12}


def steps_of_a_batch(*args: int, **options: Any) -> tuple[Rung, ...]:
    """Returns the plain rung and that of most draft tokens; a prompt's rows may cost a copy."""
    return short_ladder(*args, **options)[:3:2]


# With trees as large as they are on a GPU by default.
LOOKUP = PromptLookup(LONG_DRAFT_LENGTH, matches=MOST_MATCHES)


def compile_for(
    gpu: str,
    config: DecoderConfig = CONFIG,
    quantize: str | None = None,
    make: Callable[..., tuple[Rung, ...]] = steps_of_a_batch,
    drafter: str | Drafter = "prompt-lookup",
) -> tuple[Engine, jax.stages.Compiled]:
    dtype = jnp.dtype("float16" if gpu == "t4" else "bfloat16")
    with on_device(gpu) as sharding:
        engine = abstract_engine(dtype, drafter, config, make=make, quantize=quantize)
        return engine, compile_lowered(gpu, engine.lower(sharding))


def least_weight() -> int:
    """Returns the numbers of the smallest weight of a layer."""
    return CONFIG.hidden_size * CONFIG.num_heads * CONFIG.head_dim


def check_no_copy_of_a_slot(engine: Engine, compiled: jax.stages.Compiled) -> None:
    """Checks that the cache stays where it is, and that nothing as large as a slot's is copied."""
    spec = engine.cache_spec
    cache_bytes = math.prod(spec.shape) * spec.dtype.itemsize
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / CONFIG.num_layers
    for kind, sizes in LARGE_OPERATIONS.findall(compiled.as_text()):
        size = SIZES[kind] * math.prod(map(int, sizes.split(",")))
        assert size < cache_bytes / spec.shape[1] / CONFIG.num_layers, f"{kind}[{sizes}]"


def check_launches(engine: Engine, compiled: jax.stages.Compiled, most: int) -> None:
    """Checks how many kernels a layer launches, and that it has no loop, which launches more."""
    program = computations(compiled.as_text())
    rungs = rung_bodies(program)
    assert len(rungs) == len(engine.ladder)
    for (layer,) in (layer_bodies(program, rung) for rung in rungs):
        assert launches(program[layer]) <= most
        assert not any(" while(" in line for line in program[layer])


def test_hopper():
    engine, compiled = compile_for("h100", drafter=LOOKUP)
    check_launches(engine, compiled, MOST_LAUNCHES["h100"])
    # The attention and the four products of a layer, in each rung's loop.
    assert compiled.as_text().count('custom_call_target="mosaic_gpu') == 5 * len(engine.ladder)
    check_no_copy_of_a_slot(engine, compiled)
    check_no_weight_is_copied(engine, compiled)


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "experts"])
def test_hopper_with_every_switch(name: str):
    """See `test_compiled.test_every_switch_is_compiled`."""
    engine, compiled = compile_for("h100", SWITCHES[name])
    check_no_copy_of_a_slot(engine, compiled)
    check_no_kernel_is_copied(engine, compiled)
    assert ("residual_norm" in compiled.as_text()) == (name == "around")


@pytest.mark.parametrize(
    ("gpu", "drafter"), [("h100", "eagle"), ("a100", "recurrent"), ("l4", "own-layers")]
)
def test_drafters_that_compute(gpu: str, drafter: str):
    engine, compiled = compile_for(gpu, make=one_rung, drafter=drafter)
    check_no_copy_of_a_slot(engine, compiled)
    check_no_weight_is_copied(engine, compiled)


@pytest.mark.parametrize(
    ("name", "kind"), [("plain", "int8"), ("experts", "int8"), ("plain", "int4")]
)
@pytest.mark.parametrize("gpu", ["h100", "a100", "l4"])
def test_quantised_weights_are_read_in_place(gpu: str, name: str, kind: str):
    """XLA would copy a layer's weights, or an expert's, for products that no kernel takes."""
    engine, compiled = compile_for(gpu, SWITCHES.get(name, UNLIKE), kind)
    check_no_kernel_is_copied(engine, compiled)
    assert widened(engine, compiled) == []
    if (gpu, name) == ("h100", "plain"):
        assert compiled.as_text().count('custom_call_target="mosaic_gpu') == 5 * len(engine.ladder)


@pytest.mark.parametrize("gpu", ["h100", "a100"])
def test_int8_caches_are_read_in_place(gpu: str):
    with on_device(gpu) as sharding:
        engine = int8_cache_engine(jnp.dtype(jnp.bfloat16))
        compiled = compile_lowered(gpu, engine.lower(sharding))
    check_nothing_is_widened(engine, compiled)
    specs = jax.tree.leaves(engine.cache_spec)
    cache_bytes = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / CONFIG.num_layers
    assert compiled.as_text().count("ragged_attention") >= len(engine.ladder)


@pytest.mark.parametrize("gpu", ["h100", "a100", "l4"])
def test_experts_are_read_in_place_in_one_launch(gpu: str):
    """A loop over tiles would launch a few kernels for each."""
    engine, compiled = compile_for(gpu, SWITCHES["experts"])
    check_no_copy_of_a_slot(engine, compiled)
    check_no_kernel_is_copied(engine, compiled)
    # Norms over all heads, biases and windows take more than those of a plain layer.
    check_launches(engine, compiled, 42)


@pytest.mark.parametrize("gpu", ["a100", "l4", "b200", "g4"])
def test_other_gpus_copy_no_weight_and_launch_little(gpu: str):
    engine, compiled = compile_for(gpu, drafter=LOOKUP)
    check_launches(engine, compiled, MOST_LAUNCHES[gpu])
    assert not copied_slices(compiled.as_text(), least_weight())


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("make", [one_rung, steps_of_a_batch])
def test_only_wider_steps_copy_weights_on_a_t4(make: Any, quantize: str | None):
    """Their rows are too many for sums, and XLA has Triton only since Ampere."""
    drafter = "prompt-lookup" if make is one_rung else LOOKUP  # one capacity takes only chains
    _, compiled = compile_for("t4", quantize=quantize, make=make, drafter=drafter)
    found = copied_slices(compiled.as_text(), least_weight())
    # XLA's library reads its part of a stack in place since jax 0.11.1, but not as int8.
    wide_copies = 4 if quantize or jax.__version_info__ < (0, 11, 1) else 0
    assert len(found) == (0 if make is one_rung else wide_copies)
    # int8 weights are read as bytes, and only what the product reads is wide.
    assert all(each.startswith("s8" if quantize else "f16") for each in found)


def test_triton_has_no_code_for_a_t4(monkeypatch: pytest.MonkeyPatch):
    """Once this fails, its kernels can replace XLA's sums and copies."""
    monkeypatch.setattr(triton_gpus, "OLDEST", 7)
    x = jax.ShapeDtypeStruct((64, 512), jnp.float16)
    kernels, layer = jax.ShapeDtypeStruct((2, 512, 512), jnp.float16), jnp.int32(0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="only enabled for Ampere"):
        compile_on(
            "t4",
            lambda x, kernels: layer_matmul(x, kernels, layer=layer, backend="gpu-triton"),
            lambda: (x, kernels),
        )
