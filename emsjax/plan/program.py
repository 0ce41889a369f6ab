"""The decode program of a setting: what it takes, by the TPU compiler or by arithmetic."""

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

# More than any device has.
_HUGE = 1 << 45
# How the compiler says that a program does not fit, before it places it in memory and after.
_NEEDED = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
    r"|Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"
)
_ENOUGH_WORDS = 300
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Program(NamedTuple):
    """A decode program.

    Attributes:
      memory: what it takes.
      ladder: shapes of its steps.
      costs: of a step, by bytes and operations.
      sizes: of the model.
      cycles: of a step, by the compiler; None where nothing was compiled or it does not tell.
    """

    memory: Memory
    ladder: tuple[Rung, ...]
    costs: StepCosts
    sizes: Sizes
    cycles: StepCycles | None = None


def check_compiler(topology: str) -> None:
    """Refuses a TPU that nothing here can compile for.

    Raises:
      UserError: with the remedy.
    """
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"compiling for TPU {topology} needs the TPU compiler, libtpu, which is there for "
            "Linux on x86-64: pip install 'jax[tpu]', or leave it out with --no-compile."
        ) from None
    try:
        find_device(topology)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"the TPU compiler at hand (libtpu {version}) does not know TPU {topology}: pip "
            f"install -U 'jax[tpu]', or leave it out with --no-compile ({_line(error)})."
        ) from error


def usable_bytes(setting: Setting, compiling: bool) -> int:
    """The device's memory that a program may use: by the compiler, else as published."""
    published = setting.hardware.memory_bytes
    if not setting.hardware.is_tpu:
        return int(published * GPU_SHARE)
    if not compiling:
        return int(published)
    with on_tpu(setting.topology) as sharding:
        huge = jax.ShapeDtypeStruct((_HUGE >> 15, 1 << 15), jnp.int8, sharding=sharding)
        try:
            jax.jit(lambda x: x).lower(huge).compile()
        except jax.errors.JaxRuntimeError as error:
            if found := _NEEDED.search(str(error)):
                return _bytes(found[3], found[4])
    return int(published)


def estimate(setting: Setting) -> Program:
    """By arithmetic; nothing is compiled."""
    with compiling_for(setting.platform):
        engine = setting.engine()
        return _program(setting, engine, _counted(setting, engine))


def compile_program(setting: Setting) -> Program:
    """By the TPU compiler; nothing runs."""
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
    """What can be counted, and for temporaries what logits and activations take at least."""
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
    """As the device will hold it: the state is what is neither weights nor cache."""
    found: Any = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return counted._replace(
        state=found.argument_size_in_bytes - counted.weights - counted.cache,
        temporaries=found.temp_size_in_bytes + found.generated_code_size_in_bytes + results,
        compiled=True,
    )


def _too_large(counted: Memory, message: str) -> Memory:
    """What the compiler said of a program that it refused, in figures that it rounds."""
    found = _NEEDED.search(message)
    if found is None:
        said = " ".join(message.split())[:_ENOUGH_WORDS]
        raise UserError(f"the TPU compiler refuses the program: {said}")
    wanted, unit, there, its_unit = (part for part in found.groups() if part is not None)
    needed = max(_bytes(wanted, unit), _bytes(there, its_unit) + 1)
    known = counted.weights + counted.cache + counted.state
    return counted._replace(temporaries=max(needed - known, 0), compiled=True)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
