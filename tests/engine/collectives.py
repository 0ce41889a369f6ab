"""What the devices that share a model exchange and copy, read off a compiled program."""

import re
from collections import Counter

import jax

from emsjax.engine.engine import Engine
from emsjax.models.config import DecoderConfig
from emsjax.plan.copies import copied_weights
from tests.engine.switches import PLAIN

_KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
_TYPES = {"float32": "f32", "bfloat16": "bf16"}


def collectives(text: str) -> Counter[str]:
    """Counts the exchanges of a compiled program by kind and shape.

    The loop over layers is there once, whatever the number of layers.
    """
    found = re.findall(rf"= ([^=]*?) ({_KINDS})(-start)?\(", text)
    return Counter(f"{kind} {_result(types, kind + start)}" for types, kind, start in found)


def _result(types: str, operation: str) -> str:
    """Returns the type of an exchange's result; what begins a gather has its operand first."""
    arrays = re.findall(r"\w+\[[\d,]*\]", types)
    return arrays[1 if operation == "all-gather-start" else 0]


def expected_collectives(engine: Engine, number: int, config: DecoderConfig) -> dict[str, int]:
    """Returns the exchanges of a greedy bfloat16 program with one rung.

    Two sums in the layer, which wait as terms for the next norm, and one of the embedding; and each
    device's likeliest token of a row.
    """
    rows = engine.ladder[0].capacity
    return {
        f"all-reduce bf16[{rows},{config.hidden_size}]": 1,
        f"all-reduce bf16[1,{rows},{config.hidden_size}]": 2,
        f"all-gather s32[{number},2,{rows}]": 1,
    }


def check_no_copy_of_weights(engine: Engine, compiled: jax.stages.Compiled) -> None:
    """Checks that products read each device's part of a layer's weights where it lies."""
    held = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype), engine.params
    )
    assert not copied_weights(compiled.as_text(), held)


def check_no_copy_of_the_share(
    engine: Engine,
    compiled: jax.stages.Compiled,
    writer: str,
    others: int = 0,
    config: DecoderConfig = PLAIN,
) -> None:
    """Checks that each device updates its share of the cache in place.

    Args:
      engine: the engine.
      compiled: its decode program.
      writer: the operation that writes into the cache.
      others: bytes of temporary memory known to serve something other than the cache.
      config: of the model.
    """
    memory, spec = compiled.memory_analysis(), engine.cache_spec
    share = spec.size * spec.dtype.itemsize
    assert share <= memory.alias_size_in_bytes < 2 * share
    assert memory.temp_size_in_bytes - others < share / config.num_layers
    shape = ",".join(map(str, spec.shape))
    # A kernel with several results returns the cache as the last one.
    cache = rf"{_TYPES[spec.dtype.name]}\[{shape}\](?:{{\S*}})?"
    pattern = rf"= (?:{cache}|\([^=]*, {cache}\)) ([a-z-]+)\("
    operations = set(re.findall(pattern, compiled.as_text()))
    assert writer in operations, "the pattern no longer finds the cache"
    assert not operations & {"copy", "convert", "transpose", "all-gather"}
