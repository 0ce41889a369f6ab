"""What the devices that share a model exchange and copy, read off a compiled program."""

import re
from collections import Counter
from functools import cache

import jax

from emsjax.engine.engine import Engine
from emsjax.models.config import DecoderConfig
from emsjax.plan.copies import copied_weights
from tests.engine.switches import PLAIN

_KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
_COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"  (?:ROOT )?%([\w.-]+) = .*? ([a-z][\w-]*)\((.*)$")
_TYPES = {"float32": "f32", "bfloat16": "bf16"}


def collectives(text: str) -> Counter[str]:
    """Counts the exchanges of a compiled program by kind and shape.

    The loop over layers is there once, whatever the number of layers.
    """
    found = re.findall(rf"= ([^=]*?) ({_KINDS})(-start)?\(", text)
    return Counter(f"{kind} {_result(types, kind + start)}" for types, kind, start in found)


def overtaking(text: str) -> list[str]:
    """Returns the exchanges of a compiled program that may overtake those of a branch or loop.

    They follow it and do not need its result, see `docs/several-devices.md`. What follows an
    exchange that waits for the branch or loop waits as well.

    Args:
      text: of the program, whose operations are in the order in which they start.
    """
    assert "is_scheduled=true" in text.partition("\n")[0], "the order of operations is unknown"
    computations: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            operations = computations[begins[1]] = {}
        elif found := _OPERATION.match(line):
            names = re.findall(r"%([\w.-]+)", found[3].partition(", metadata=")[0])
            operations[found[1]] = found[2], names

    @cache
    def exchanges(computation: str) -> bool:
        return any(
            is_exchange(kind) or any(map(exchanges, called(names)))
            for kind, names in computations[computation].values()
        )

    def called(names: list[str]) -> list[str]:
        return [name for name in names if name in computations]

    def is_exchange(kind: str) -> bool:
        return re.fullmatch(_KINDS, kind.removesuffix("-start")) is not None

    found = []
    for operations in computations.values():
        pending, waiting = None, set[str]()  # a branch or loop, and what needs its result
        for name, (kind, names) in operations.items():
            if not waiting.isdisjoint(names):
                waiting.add(name)
            nested = any(map(exchanges, called(names)))
            if not (nested or is_exchange(kind)):
                continue
            if pending and name not in waiting:
                found.append(f"{name} may overtake {pending}")
            elif nested or pending:
                pending, waiting = (name, {name}) if nested else (None, set())
    return found


def _result(types: str, operation: str) -> str:
    """Returns the type of an exchange's result, without a leading axis of length 1.

    What begins a gather has its operand first.
    """
    arrays = re.findall(r"\w+\[[\d,]*\]", types)
    return arrays[1 if operation == "all-gather-start" else 0].replace("[1,", "[")


def expected_collectives(engine: Engine, number: int, config: DecoderConfig) -> dict[str, int]:
    """Returns the exchanges of a greedy bfloat16 program with one rung.

    Two sums in the layer and one of the embedding, and each device's likeliest token of a row.
    """
    rows = engine.ladder[0].capacity
    return {
        f"all-reduce bf16[{rows},{config.hidden_size}]": 3,
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
