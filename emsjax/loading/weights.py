"""Reads a checkpoint's tensors into a model's parameters, with about one model in memory.

Each parameter is allocated once, filled tensor by tensor in the requested dtype and passed to jax.
On CPU, jax adopts the aligned buffer without a copy.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.parameters import Parameter, plan_parameters
from emsjax.loading.sources.buffers import aligned_empty
from emsjax.loading.sources.source import TensorSource
from emsjax.models.family import WeightMap, dotted

Progress = Callable[[int, int], None]


def load_params(
    abstract: nnx.State,
    weight_map: WeightMap,
    source: TensorSource,
    dtype: Any,
    progress: Progress | None = None,
) -> nnx.State:
    """Reads every parameter of `abstract` from `source`.

    Args:
      abstract: parameters as `jax.ShapeDtypeStruct`s (from `nnx.eval_shape`); their dtypes are
        ignored.
      weight_map: the tensors that each parameter comes from.
      source: the checkpoint.
      dtype: floating dtype of the result.
      progress: called with (tensors read, total tensors).

    Returns:
      The same state with `jax.Array`s of `dtype` on the default device.

    Raises:
      UserError: tensors are missing, surplus, truncated or misshapen. The message names the
        first of them, and it is raised before any data is read. Or a tensor does not hold
        floating-point numbers.
      ValueError: the weight map and the model have different parameters.
    """
    leaves = {dotted(path): (path, leaf) for path, leaf in nnx.to_flat_state(abstract)}
    shapes = {name: tuple(leaf.shape) for name, (_, leaf) in leaves.items()}
    parameters = plan_parameters(shapes, weight_map, source)
    total = sum(len(names) for p in parameters.values() for names in p.layers)
    read = _counted(source.read, total, progress, source.name)
    filled = []
    for name, (path, leaf) in leaves.items():
        value = jax.device_put(_assemble(parameters[name], read, dtype))
        filled.append((path, leaf.replace(value)))
    return nnx.from_flat_state(filled)


def _counted(
    read: Callable[[str], np.ndarray], total: int, progress: Progress | None, origin: str
) -> Callable[[str], np.ndarray]:
    """Wraps `read` to report progress and to check the dtypes."""
    done = 0

    def counting(name: str) -> np.ndarray:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)
        return _floating(read(name), name, origin)

    return counting


def _floating(value: np.ndarray, name: str, origin: str) -> np.ndarray:
    """Returns a tensor, after checking that its values are weights and not, say, packed bits."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(
            f"tensor {name} in {origin} holds {value.dtype} values, but weights must be floating "
            "point; use a copy of the model that is not quantised, or a GGUF file."
        )
    return value


def _assemble(parameter: Parameter, read: Callable[[str], np.ndarray], dtype: Any) -> np.ndarray:
    """Returns the parameter's value in `dtype`, in a buffer that jax may adopt."""
    rule = parameter.rule
    if not rule.stacked:
        value = rule.transform([read(name) for name in parameter.layers[0]])
        return value if _adoptable(value, dtype) else _copied(value, dtype)
    stack = aligned_empty(parameter.shape, dtype)
    for layer, names in zip(stack, parameter.layers, strict=True):
        layer[...] = rule.transform([read(name) for name in names])
    return stack


def _adoptable(value: np.ndarray, dtype: Any) -> bool:
    """Returns whether jax may adopt `value`. Read-only arrays may be mapped files."""
    return value.flags.writeable and value.flags.c_contiguous and value.dtype == dtype


def _copied(value: np.ndarray, dtype: Any) -> np.ndarray:
    copy = aligned_empty(value.shape, dtype)
    copy[...] = value
    return copy
