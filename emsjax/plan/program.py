"""Compiles a setting's decode program for a TPU or GPU, and reads its memory and cycles."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from emsjax.costs.hardware import GPU_SHARE
from emsjax.drafters import PromptLookup
from emsjax.engine.devices import ONE, SAME, Devices
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import Rung
from emsjax.errors import UserError
from emsjax.host.memory_error import is_out_of_memory
from emsjax.loading.build import shape_of_model
from emsjax.pallas_kernels.ahead import compile_lowered, on_device, on_devices
from emsjax.pallas_kernels.gpu_targets import GPUS
from emsjax.pallas_kernels.scoped_vmem import compiler_options
from emsjax.plan.cycles import read_cycles
from emsjax.plan.estimate import Program, estimate, published_bytes
from emsjax.plan.memory import Memory
from emsjax.plan.setting import Setting

# More bytes than any device has.
_HUGE = 1 << 45
# How the compiler reports a program that does not fit, before and after it allocates memory.
_NEEDED = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
    r"|Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"
)
_MOST_CHARACTERS = 300  # of an unexpected compiler message
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def usable_bytes(setting: Setting) -> int:
    """Returns how many bytes of memory a program may use, as the device's compiler knows it."""
    if setting.platform == "gpu":
        return int(GPU_SHARE * GPUS[setting.topology].memory_bytes)
    # A TPU's compiler states the memory only when it rejects a program that needs more.
    with on_device(setting.topology) as sharding:
        huge = jax.ShapeDtypeStruct((_HUGE >> 15, 1 << 15), jnp.int8, sharding=sharding)
        try:
            jax.jit(lambda x: x).lower(huge).compile()
        except jax.errors.JaxRuntimeError as error:
            if found := _NEEDED.search(str(error)):
                return _bytes(found[3], found[4])
    return published_bytes(setting)


def compile_program(setting: Setting) -> Program:
    """Compiles the program with the device's compiler; nothing runs.

    Raises:
      UserError: the compiler rejects the program for an unexpected reason.
    """
    counted = estimate(setting)
    try:
        engine, compiled = compile_rungs(setting, setting.ladder())
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return counted._replace(memory=_too_large(counted.memory, str(error)))
    counted = counted._replace(memory=_compiled(counted.memory, compiled))
    if not setting.hardware.hertz:
        return counted
    layers, text = engine.cache_spec.shape[0], compiled.as_text() or ""
    return counted._replace(cycles=read_cycles(text, len(engine.ladder), layers))


def compile_rungs(setting: Setting, ladder: Sequence[Rung]) -> tuple[Engine, jax.stages.Compiled]:
    """Compiles the program of greedy batches with these rungs for the devices of a replica."""
    with on_devices(setting.topology, setting.shards) as mesh:
        devices = ONE if setting.shards == 1 else Devices(mesh)
        engine = _engine(setting, ladder, devices)
        lowered = engine.lower(NamedSharding(mesh, SAME))
        return engine, compile_lowered(setting.topology, lowered)


def _engine(setting: Setting, ladder: Sequence[Rung], devices: Devices = ONE) -> Engine:
    """Returns an engine whose weights are only shapes.

    Its drafter is prompt lookup, which stands for every drafter that costs next to nothing.
    """
    kinds = jnp.dtype(setting.dtype), setting.quantize, setting.kv_dtype
    return Engine(
        shape_of_model(setting.config, *kinds, devices),
        PromptLookup(setting.draft_length),
        ladder,
        num_slots=setting.num_slots,
        capacity=setting.capacity,
        costs=setting.costs(setting.sizes(), ladder),
        devices=devices,
        compiler_options=compiler_options(),
    )


def _compiled(counted: Memory, compiled: jax.stages.Compiled) -> Memory:
    """Returns the memory by the compiler's analysis.

    State is what the arguments hold besides weights and cache.
    """
    found: Any = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return counted._replace(
        state=found.argument_size_in_bytes - counted.weights - counted.cache,
        temporaries=found.temp_size_in_bytes + found.generated_code_size_in_bytes + results,
        compiled=True,
    )


def _too_large(counted: Memory, message: str) -> Memory:
    """Returns the memory of a program that the compiler rejected, from its rounded figures."""
    found = _NEEDED.search(message)
    if found is None:
        said = " ".join(message.split())[:_MOST_CHARACTERS]
        raise UserError(f"the compiler rejects the program ({said}); give --no-compile")
    needs, unit, available, its_unit = (part for part in found.groups() if part is not None)
    # Rounding may make the two figures equal, but the program needs more than there is.
    needed = max(_bytes(needs, unit), _bytes(available, its_unit) + 1)
    known = counted.weights + counted.cache + counted.state
    return counted._replace(temporaries=max(needed - known, 0), compiled=True)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])
