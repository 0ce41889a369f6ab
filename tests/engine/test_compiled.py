"""The compiled decode program makes no copy of the cache and needs little temporary memory.

The TPU tests use the real TPU compiler, which needs no TPU.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from emsjax.drafters import DraftModel
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import Rung, make_ladder
from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config
from emsjax.models.config import DecoderConfig
from emsjax.pallas_kernels.ahead import TOPOLOGIES, on_device
from emsjax.plan.copies import copied_slices, copied_stacks, copied_weights
from emsjax.plan.loops import computations, layer_bodies, rung_bodies
from emsjax.plan.traffic import launches
from tests.engine.setup import make_engine
from tests.engine.switches import PLAIN as CONFIG
from tests.engine.switches import SWITCHES
from tests.ladders import one_rung, two_rungs

pytestmark = pytest.mark.usefixtures("no_compile_cache")

HLO_TYPES = {"float32": "f32", "bfloat16": "bf16", "uint16": "u16", "int8": "s8"}
SLOW = pytest.mark.slow
# Fields that are numbers, not switches.
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "stacks")
SIZES += ("num_kv_heads", "head_dim", "max_positions", "norm_eps", "shards", "ordered_sums")
# Overrides the fast compilation that `scripts/test` sets.
AS_FOR_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
# Operations that pass the cache on without copying it.
PASS_ON = {"parameter", "tuple", "get-tuple-element", "fusion", "bitcast", "while"}
# The operation that writes into the cache in place: XLA's scatter, or the kernel, which aliases its
# output with its input.
WRITERS = {"cpu": "scatter", "tpu": "custom-call"}


def abstract_engine(
    dtype: jnp.dtype,
    drafter: str | Drafter,
    config: DecoderConfig = CONFIG,
    method: str = "ems",
    make: Callable[..., tuple[Rung, ...]] = two_rungs,
    quantize: str | None = None,
) -> Engine:
    """Makes an engine with shapes for weights. Rungs compile alike, so most tests do with two."""
    return make_engine(
        shape_of_model(config, dtype, quantize),
        drafter,
        num_slots=8,
        capacity=2048,
        costs=None if drafter == "none" else 1.0,
        method=method,
        make=make,
    )


def check_no_copy_of_the_cache(
    engine: Engine, compiled: jax.stages.Compiled, platform: str, others: int = 0
) -> None:
    """Checks memory and operations.

    Args:
      engine: the engine.
      compiled: its decode program.
      platform: "cpu" or "tpu".
      others: bytes of temporary memory known to serve something other than the cache.
    """
    specs = jax.tree.leaves(engine.cache_spec)
    cache_bytes = sum(spec.size * spec.dtype.itemsize for spec in specs)
    memory = compiled.memory_analysis()
    # Less than one layer's share of `CONFIG`: it belongs to the drafter and the logits.
    assert memory.temp_size_in_bytes - others < cache_bytes / CONFIG.num_layers
    assert memory.alias_size_in_bytes >= cache_bytes * _caches(engine)
    text = compiled.as_text()
    for spec in specs:
        operations = operations_that_return(spec, text)
        assert WRITERS[platform] in operations, "the pattern no longer finds the cache"
        # XLA moves scales to VMEM for each step if they fit.
        moved = {"copy-done"} if spec is not specs[0] else set()
        # XLA's scatter moves the accepted path of a tree.
        written = {
            WRITERS[platform],
            *(["scatter"] if getattr(engine.drafter, "tree", False) else []),
        }
        assert set(operations) <= PASS_ON | written | moved
    # The same elements in any other type or order would be a convert or a transpose.
    elements = max(spec.size for spec in specs)
    for kind, sizes in re.findall(r"= (\w+)\[([0-9,]+)\]\S* (?:copy|convert|transpose)\(", text):
        assert math.prod(map(int, sizes.split(","))) < elements, f"{kind}[{sizes}]"


def operations_that_return(cache: jax.ShapeDtypeStruct, text: str) -> list[str]:
    """Returns the operations of a program whose result is a cache, or whose last one is."""
    shape = ",".join(map(str, cache.shape))
    kind = rf"{HLO_TYPES[cache.dtype.name]}\[{shape}\](?:{{\S*}})?"
    return re.findall(rf"= (?:{kind}|\([^=]*, {kind}\)) ([a-z-]+)\(", text)


def _caches(engine: Engine) -> int:
    """Returns the number of caches: 2 with a draft model, which is the target itself here."""
    return 2 if isinstance(engine.drafter, DraftModel) else 1


@pytest.mark.parametrize(
    "drafter",
    [
        "prompt-lookup",
        "combined-own-layers",
        "tree",
        *(pytest.param(d, marks=SLOW) for d in ("none", "combined", "itself", "self-window")),
    ],
)
def test_cpu(drafter: str):
    make = make_ladder if drafter == "prompt-lookup" else two_rungs
    engine = abstract_engine(jnp.float32, drafter, make=make)
    compiled = engine.lower().compile(AS_FOR_USERS)
    check_no_copy_of_the_cache(engine, compiled, "cpu")
    check_no_weight_is_copied(engine, compiled)


def test_cpu_bfloat16():
    """Only kernels multiply, because XLA would make float32 of all weights first."""
    engine = abstract_engine(jnp.bfloat16, "none", make=one_rung)
    compiled = engine.lower().compile(AS_FOR_USERS)
    check_no_weight_is_copied(engine, compiled)
    assert not re.findall(r"= f32\[\S+ .* dot\(", compiled.as_text())


def test_cpu_sampling():
    engine = abstract_engine(jnp.float32, "prompt-lookup")
    compiled = engine.lower(sampling=True).compile(AS_FOR_USERS)
    check_no_copy_of_the_cache(engine, compiled, "cpu")
    check_no_sort_of_the_vocabulary(compiled)


def check_no_sort_of_the_vocabulary(compiled: jax.stages.Compiled) -> None:
    """Checks that neither filters nor drawing sort the vocabulary."""
    sorts = re.findall(r"= \(?\w+\[([0-9,]+)\]\S* .*?sort\(", compiled.as_text())
    assert not [shape for shape in sorts if int(shape.split(",")[-1]) >= CONFIG.vocab_size]


def compile_for_tpu(
    generation: str,
    drafter: str,
    config: DecoderConfig = CONFIG,
    make: Callable[..., tuple[Rung, ...]] = two_rungs,
    **program: bool,
) -> tuple[Engine, jax.stages.Compiled]:
    with on_device(generation) as sharding:
        engine = abstract_engine(jnp.bfloat16, drafter, config, make=make)
        return engine, engine.lower(sharding, **program).compile()


@functools.cache
def every_rung_on_v5e() -> tuple[Engine, jax.stages.Compiled]:
    return compile_for_tpu("v5e", "prompt-lookup", make=make_ladder)


def check_no_weight_is_copied(engine: Engine, compiled: jax.stages.Compiled) -> None:
    """Checks that products read a layer's weights where they lie in the stack."""
    assert not copied_weights(compiled.as_text(), engine.params)


def test_tpu_v5e():
    check_no_copy_of_the_cache(*every_rung_on_v5e(), "tpu")


def test_tpu_v5e_reads_weights_in_large_blocks():
    """See `scoped_vmem`."""
    wide = replace(CONFIG, hidden_size=2048, intermediate_size=8192, num_layers=2)
    _, compiled = compile_for_tpu("v5e", "none", wide, make=one_rung)
    used = re.findall(r'used_scoped_memory_configs":\[[^\]]*"size":"(\d+)"', compiled.as_text())
    default = 16 << 20
    assert max(map(int, used)) > default


def test_tpu_v5e_copies_no_weight():
    check_no_weight_is_copied(*every_rung_on_v5e())


def test_tpu_v5e_starts_few_operations_a_layer():
    """Four products and four kernels, and no operation around them; each costs microseconds."""
    engine, compiled = every_rung_on_v5e()
    program = computations(compiled.as_text())
    rungs = zip(engine.ladder, rung_bodies(program), strict=True)
    few = [body for rung, body in rungs if rung.capacity <= 64]
    assert len(few) > 3
    for (layer,) in (layer_bodies(program, body) for body in few):
        lines = "\n".join(program[layer])
        kernels = re.findall(r"%([a-z_]+)[.\w]* = .* custom-call\(", lines)
        assert kernels == ["residual_norm", "split_heads", "ragged_attention", "residual_norm"]
        # The counter of the layers takes one, and its copy another.
        assert launches(program[layer]) <= 10


@pytest.mark.parametrize("drafter", ["dflash", "hidden-transfer"])
def test_tpu_v5e_guesses_at_once(drafter: str):
    engine, compiled = compile_for_tpu("v5e", drafter, make=one_rung)
    check_no_copy_of_the_cache(engine, compiled, "tpu")
    check_no_weight_is_copied(engine, compiled)
    if drafter == "dflash":
        target = engine.cache_spec
        own = jax.ShapeDtypeStruct((1, *target.shape[1:]), target.dtype)
        operations = set(operations_that_return(own, compiled.as_text()))
        assert "custom-call" in operations
        assert operations <= PASS_ON | {"custom-call"}


def test_tpu_v5e_leaves_a_cache_in_hbm():
    """XLA would move one that fits to VMEM in each step, and back, for the kernel that writes."""
    with on_device("v5e") as sharding:
        model = shape_of_model(CONFIG, jnp.dtype(jnp.bfloat16))
        engine = make_engine(model, "none", 2, capacity=256, make=one_rung)
        compiled = engine.lower(sharding).compile()
    operations = set(operations_that_return(engine.cache_spec, compiled.as_text()))
    assert "custom-call" in operations
    assert operations <= PASS_ON | {"custom-call"}


def check_no_kernel_is_copied(engine: Engine, compiled: jax.stages.Compiled) -> None:
    """Checks that products read kernels where they lie, those of experts included."""
    leaves = nnx.to_flat_state(engine.params)
    kernels = [leaf.shape for path, leaf in leaves if path[-1] == "kernel" and leaf.ndim > 2]
    text = compiled.as_text()
    assert not copied_slices(text, min(math.prod(shape[-2:]) for shape in kernels))
    assert not copied_stacks(text, kernels)


@pytest.mark.parametrize(
    "name", ["around", "experts", "parallel", pytest.param("residual", marks=SLOW)]
)
def test_tpu_v5e_with_every_switch(name: str):
    """See `test_every_switch_is_compiled`."""
    engine, compiled = compile_for_tpu("v5e", "none", SWITCHES[name])
    check_no_copy_of_the_cache(engine, compiled, "tpu")
    check_no_kernel_is_copied(engine, compiled)
    text = compiled.as_text()
    products = re.findall(r"%(expert_matmul\S*) = .* custom-call\(", text)
    assert len(products) == (2 * len(engine.ladder) if name == "experts" else 0)
    # The others bound queries and keys, or have layer norms of them.
    assert ("%split_heads" in text) == (name in ("around", "residual"))
    # The others have no RMS norms in front of both sublayers.
    assert ("%residual_norm" in text) == (name == "around")


def test_every_switch_is_compiled():
    """A switch that the decoder gets must be added to `SWITCHES`."""
    compiled = (CONFIG, *SWITCHES.values())
    for field in fields(DecoderConfig):
        values = {getattr(config, field.name) for config in compiled}
        known = get_args(get_type_hints(DecoderConfig)[field.name])
        options = {option for each in known for option in (get_args(each) or (each,))}
        if field.name not in (*SIZES, "activation"):
            assert len(values) > 1, field.name
            assert all(option in values for option in options if isinstance(option, str))


@SLOW
@pytest.mark.parametrize(
    ("generation", "drafter"),
    [
        *((generation, "tree") for generation in TOPOLOGIES),
        ("v5e", "none"),
        ("v6e", "itself"),
        ("v5e", "combined"),
        ("v6e", "own-layers"),
        ("v5e", "self-window"),
    ],
)
def test_every_tpu(generation: str, drafter: str):
    compiled = compile_for_tpu(generation, drafter)
    check_no_copy_of_the_cache(*compiled, "tpu")
    check_no_weight_is_copied(*compiled)


@SLOW
def test_tpu_v5e_padded():
    """The padded method compiles to the TPU kernel too, with holes."""
    with on_device("v5e") as sharding:
        engine = abstract_engine(jnp.bfloat16, "prompt-lookup", method="vanilla")
        engine.use_costs(None)  # Padded inputs cannot be planned by costs.
        compiled = engine.lower(sharding).compile()
    check_no_copy_of_the_cache(engine, compiled, "tpu")
    kernels = re.findall(r"%(ragged_attention\S*) = .* custom-call\(", compiled.as_text())
    assert len(kernels) == len(engine.ladder)


@SLOW
@pytest.mark.parametrize("generation", ["v4", "v6e"])
def test_tpu_sampling(generation: str):
    engine, compiled = compile_for_tpu(generation, "prompt-lookup", sampling=True)
    # Logits of 64 rows and similar arrays: measured 27 MB on v5e, and 60 MB for 16 times V.
    check_no_copy_of_the_cache(engine, compiled, "tpu", others=28_000_000)


def test_copying_a_prompts_cache_needs_memory_for_one_layer_only():
    engine = abstract_engine(jnp.float32, "none")
    spec = engine.cache_spec
    cache, slot = jax.ShapeDtypeStruct(spec.shape, spec.dtype), jax.ShapeDtypeStruct((), jnp.int32)
    copy = engine._copy_prefix.lower(cache, slot, slot, slot).compile(AS_FOR_USERS)
    memory = copy.memory_analysis()
    layers, slots = spec.shape[:2]
    cache_bytes = math.prod(spec.shape) * spec.dtype.itemsize
    assert memory.alias_size_in_bytes == cache_bytes
    assert memory.temp_size_in_bytes <= 1.1 * cache_bytes / layers / slots


# Each model is compiled for a TPU with enough memory.
NAMED = {"smollm2-135m": "v5e", "gemma-3-1b": "v5e", "opt-6.7b": "v6e", "llama-3-8b": "v5p"}


@SLOW
@pytest.mark.parametrize("name", NAMED)
def test_named_models(name: str):
    config = named_config(name)
    compiled = compile_for_tpu(NAMED[name], "prompt-lookup", config)
    # With more on-chip memory for a product the compiler writes Gemma's logits, of 8 rows a slot.
    logits = 8 * 8 * config.vocab_size * 4
    check_no_copy_of_the_cache(*compiled, "tpu", logits)
    check_no_weight_is_copied(*compiled)
