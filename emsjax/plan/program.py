"""Memory and step costs of a setting's decode program, compiled for a TPU or estimated."""

import importlib.metadata
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.costs.hardware import GPU_SHARE
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import Rung
from emsjax.engine.model import Sizes
from emsjax.engine.worth import StepCosts
from emsjax.errors import UserError
from emsjax.pallas_kernels.ahead import find_device, on_tpu
from emsjax.pallas_kernels.backends import compiling_for
from emsjax.plan.cycles import StepCycles, read_cycles
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


class Program(NamedTuple):
    """What is known of a decode program.

    Attributes:
      memory: memory of the program.
      ladder: shapes of a step.
      costs: step costs estimated from bytes and operations.
      sizes: sizes of the model.
      cycles: cycles of a step by the compiler; None if nothing was compiled, or if the compiled
        program does not have the expected structure.
    """

    memory: Memory
    ladder: tuple[Rung, ...]
    costs: StepCosts
    sizes: Sizes
    cycles: StepCycles | None = None


def check_compiler(topology: str) -> None:
    """Checks that a compiler for a TPU is installed.

    Raises:
      UserError: there is no compiler, or it does not know the TPU.
    """
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"compiling for TPU {topology} needs the TPU compiler, libtpu, which is available for "
            "Linux on x86-64; pip install 'jax[tpu]', or give --no-compile."
        ) from None
    try:
        find_device(topology)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"the installed TPU compiler (libtpu {version}) does not know TPU {topology} "
            f"({_line(error)}); pip install -U 'jax[tpu]', or give --no-compile."
        ) from error


def usable_bytes(setting: Setting, compiling: bool) -> int:
    """Returns how many bytes of the device's memory a program may use.

    Args:
      setting: names the device.
      compiling: whether to ask the TPU compiler; otherwise this is the published size, less what
        jax leaves free on a GPU.
    """
    published = setting.hardware.memory_bytes
    if not setting.hardware.is_tpu:
        return int(published * GPU_SHARE)
    if not compiling:
        return int(published)
    # The compiler states the available memory only when it rejects a program that needs more.
    with on_tpu(setting.topology) as sharding:
        huge = jax.ShapeDtypeStruct((_HUGE >> 15, 1 << 15), jnp.int8, sharding=sharding)
        try:
            jax.jit(lambda x: x).lower(huge).compile()
        except jax.errors.JaxRuntimeError as error:
            if found := _NEEDED.search(str(error)):
                return _bytes(found[3], found[4])
    return int(published)


def estimate(setting: Setting) -> Program:
    """Estimates the program without compiling it."""
    with compiling_for(setting.platform):
        engine = setting.engine()
        return _program(setting, engine, _counted(setting, engine))


def compile_program(setting: Setting) -> Program:
    """Compiles the program with the TPU compiler; nothing runs.

    Raises:
      UserError: the compiler rejects the program for an unexpected reason.
    """
    with on_tpu(setting.topology) as sharding:
        engine = setting.engine()
        counted = _counted(setting, engine)
        lowered = engine.lower(sharding)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _program(setting, engine, _too_large(counted, str(error)))
        program = _program(setting, engine, _compiled(counted, compiled))
        layers = engine.cache_spec.shape[0]
        cycles = read_cycles(compiled.as_text() or "", len(engine.ladder), layers)
        return program._replace(cycles=cycles)


def _program(setting: Setting, engine: Engine, memory: Memory) -> Program:
    assert engine.costs is not None
    return Program(memory, engine.ladder, engine.costs, setting.sizes())


def _counted(setting: Setting, engine: Engine) -> Memory:
    """Returns the memory by array sizes.

    Temporaries are a lower bound: only logits and activations.
    """
    sizes, cache = setting.sizes(), _nbytes(engine.cache_spec)
    state = sum(map(_nbytes, jax.tree.leaves(jax.eval_shape(engine.empty))))
    rows = max(rung.capacity for rung in engine.ladder)
    config = setting.config
    wide = 2 * config.intermediate_size + 4 * config.hidden_size
    emitting = setting.num_slots * (setting.draft_length + 1)
    temporaries = emitting * config.vocab_size * 4 + rows * wide * sizes.itemsize
    return Memory(
        setting.num_slots, sizes.weights_bytes, cache, state - cache, temporaries, compiled=False
    )


def _nbytes(spec: Any) -> int:
    return int(math.prod(spec.shape)) * spec.dtype.itemsize


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
        raise UserError(f"the TPU compiler rejects the program ({said}); give --no-compile")
    needs, unit, available, its_unit = (part for part in found.groups() if part is not None)
    # Rounding may make the two figures equal, but the program needs more than there is.
    needed = max(_bytes(needs, unit), _bytes(available, its_unit) + 1)
    known = counted.weights + counted.cache + counted.state
    return counted._replace(temporaries=max(needed - known, 0), compiled=True)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
