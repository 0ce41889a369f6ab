"""Reads a checkpoint's tensors into a model's parameters, with about one model in memory.

Each parameter is allocated once, filled tensor by tensor in the requested dtype and passed to jax.
On CPU, jax adopts the aligned buffer without a copy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.parameters import Parameter
from emsjax.loading.sources.buffers import aligned_empty
from emsjax.loading.sources.int8 import Int8, quantise
from emsjax.loading.sources.source import TensorSource
from emsjax.models.family import dotted
from emsjax.models.quantised import SCALE

Progress = Callable[[int, int], None]


def load_params(
    abstract: nnx.State,
    parameters: Mapping[str, Parameter],
    source: TensorSource,
    dtype: Any,
    progress: Progress | None = None,
) -> nnx.State:
    """Reads every parameter of `abstract` from `source`.

    Args:
      abstract: parameters as `jax.ShapeDtypeStruct`s (from `nnx.eval_shape`). A parameter with a
        scale becomes int8; the dtypes of all others are ignored.
      parameters: where each parameter comes from, as `plan_parameters` returns it.
      source: the checkpoint.
      dtype: floating dtype of the result.
      progress: called with (tensors read, total tensors).

    Returns:
      The same state with `jax.Array`s on the default device: of `dtype`, or of int8 with float32
      scales.

    Raises:
      UserError: a tensor does not hold floating-point numbers, or holds one that is not finite and
        cannot be quantised.
    """
    leaves = {dotted(path): (path, leaf) for path, leaf in nnx.to_flat_state(abstract)}
    total = sum(len(names) for p in parameters.values() for names in p.pieces)
    reader = _Reader(source, total, progress)
    filled = []
    for name, parameter in parameters.items():
        if name + SCALE not in leaves:
            made = {name: _assemble(parameter, reader, dtype)}
        else:
            made = dict(zip((name, name + SCALE), _assemble_int8(parameter, reader), strict=True))
        for each, value in made.items():
            path, leaf = leaves[each]
            filled.append((path, leaf.replace(jax.device_put(value))))
    return nnx.from_flat_state(filled)


class _Reader:
    """Reads tensors, reports progress and checks the values."""

    def __init__(self, source: TensorSource, total: int, progress: Progress | None):
        self.source = source
        self._total, self._progress, self._done = total, progress, 0

    def floats(self, name: str) -> np.ndarray:
        """Returns a tensor, after checking that its values are weights and not, say, packed bits.

        Raises:
          UserError: they are not floating-point numbers.
        """
        self._count()
        value = self.source.read(name)
        # Floats of 8 bits mean nothing without a scale, which no format of theirs lacks.
        if not jnp.issubdtype(value.dtype, jnp.floating) or value.dtype.itemsize == 1:
            raise UserError(
                f"tensor {name} in {self.source.name} holds {value.dtype} values, but weights must "
                "be floating point, or quantised as config.json says; use another copy."
            )
        return value

    def int8(self, name: str) -> Int8:
        """Returns a tensor that the source holds in int8."""
        self._count()
        return self.source.read_int8(name)

    def _count(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _assemble(parameter: Parameter, reader: _Reader, dtype: Any) -> np.ndarray:
    """Returns the parameter's value in `dtype`, in a buffer that jax may adopt."""
    rule = parameter.rule
    if not rule.stacked_axes:
        value = rule.transform([reader.floats(name) for name in parameter.pieces[0]])
        return value if _adoptable(value, dtype) else _copied(value, dtype)
    stack = aligned_empty(parameter.shape, dtype)
    pieces = stack.reshape(-1, *parameter.piece)
    for piece, names in zip(pieces, parameter.pieces, strict=True):
        piece[...] = rule.transform([reader.floats(name) for name in names])
    return stack


def _assemble_int8(parameter: Parameter, reader: _Reader) -> Int8:
    """Returns the parameter's value in int8, in buffers that jax may adopt.

    Numbers that the checkpoint holds in int8 are kept, all others are rounded piece by piece.
    """
    shape, piece = parameter.shape, parameter.piece
    whole = Int8(aligned_empty(shape, np.int8), aligned_empty(shape[:-1], np.float32))
    keeps = parameter.tensors <= reader.source.int8 and parameter.rule.joins
    pieces = Int8(whole.values.reshape(-1, *piece), whole.scale.reshape(-1, *piece[:-1]))
    for values, scale, names in zip(*pieces, parameter.pieces, strict=True):
        if keeps:
            held = [reader.int8(name) for name in names]
            values[...] = parameter.rule.transform([each.values for each in held])
            scale[...] = parameter.rule.transform([each.scale for each in held])
        else:
            tensor = parameter.rule.transform([reader.floats(name) for name in names])
            _quantise(tensor, Int8(values, scale), names, reader.source)
    return whole


def _quantise(tensor: np.ndarray, into: Int8, names: Any, source: TensorSource) -> None:
    try:
        quantise(tensor, into)
    except ValueError as error:
        raise UserError(
            f"{' and '.join(names)} in {source.name} cannot be quantised ({error}); load the model "
            "without quantising it, or download it again."
        ) from error


def _adoptable(value: np.ndarray, dtype: Any) -> bool:
    """Returns whether jax may adopt `value`. Read-only arrays may be mapped files."""
    return value.flags.writeable and value.flags.c_contiguous and value.dtype == dtype


def _copied(value: np.ndarray, dtype: Any) -> np.ndarray:
    copy = aligned_empty(value.shape, dtype)
    copy[...] = value
    return copy
