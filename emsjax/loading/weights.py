"""Reads a checkpoint's tensors into a model's parameters, with about one model in memory.

Each parameter is allocated once, filled tensor by tensor in the requested dtype and passed to jax.
On CPU, jax adopts the aligned buffer without a copy. If devices share the model, this happens for
each device's part of the parameter in turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.grouped import ENDS, read_grouped
from emsjax.loading.parameters import Parameter
from emsjax.loading.parts import Division, Part
from emsjax.loading.sources.buffers import aligned_empty
from emsjax.loading.sources.int4 import Int4
from emsjax.loading.sources.int8 import Int8, quantise
from emsjax.loading.sources.source import TensorSource
from emsjax.models.division import Cut
from emsjax.models.family import dotted
from emsjax.models.groups import Groups
from emsjax.pallas_kernels.quantised import SCALE, SCALES

Progress = Callable[[int, int], None]


def load_params(
    abstract: nnx.State,
    parameters: Mapping[str, Parameter],
    source: TensorSource,
    dtype: Any,
    division: Division,
    progress: Progress | None = None,
) -> nnx.State:
    """Reads every parameter of `abstract` from `source`.

    Args:
      abstract: parameters as `jax.ShapeDtypeStruct`s (from `nnx.eval_shape`). A parameter with a
        scale becomes int8, one with scales 4 bits; the dtypes of all others are ignored.
      parameters: where each parameter comes from, as `plan_parameters` returns it.
      source: the checkpoint.
      dtype: floating dtype of the result.
      division: the devices to put the parameters on.
      progress: called with (tensors read, total tensors).

    Returns:
      The same state with `jax.Array`s: of `dtype`, or of int8 or int4 with float32 scales.

    Raises:
      UserError: a tensor does not hold floating-point numbers, or holds one that is not finite and
        cannot be quantised.
    """
    leaves = {dotted(path): (path, leaf) for path, leaf in nnx.to_flat_state(abstract)}
    total = len({name for parameter in parameters.values() for name in parameter.tensors})
    reader = _Reader(source, total, progress)
    filled = []
    for name, parameter in parameters.items():
        if name + SCALES in leaves:
            ends = [end for end in ENDS if name + end in leaves]
            groups = leaves[name + SCALES][1].shape[-2]
            made = read_grouped(name, parameter, reader.int4, groups, ends, division)
        else:
            read = _read_int8 if name + SCALE in leaves else _read_floats
            made = read(name, parameter, reader, dtype, division)
        for each, value in made.items():
            path, leaf = leaves[each]
            filled.append((path, leaf.replace(value)))
    return nnx.from_flat_state(filled)


def _read_floats(
    name: str, parameter: Parameter, reader: "_Reader", dtype: Any, division: Division
) -> dict[str, jax.Array]:
    """Reads a parameter that is not quantised, and puts it on its devices."""
    held, cut = [], None
    for part in division.parts(name, parameter.shape):
        held.append(division.put(_assemble(parameter, reader, dtype, part), part))
        cut = part.cut
    return {name: division.join(held, cut)}


def _read_int8(
    name: str, parameter: Parameter, reader: "_Reader", dtype: Any, division: Division
) -> dict[str, jax.Array]:
    """Reads a parameter in int8 and its scale, and puts them on their devices."""
    del dtype
    values: list[jax.Array] = []
    scales: list[jax.Array] = []
    scale_cut, cut = division.cut(name + SCALE, parameter.shape[:-1]), None
    for part in division.parts(name, parameter.shape):
        made, cut = _assemble_int8(parameter, reader, part, scale_cut), part.cut
        values.append(division.put(made.values, part))
        if scale_cut is not None or not scales:  # all devices may have the same scale
            scales.append(division.put(made.scale, replace(part, cut=scale_cut)))
    return {name: division.join(values, cut), name + SCALE: division.join(scales, scale_cut)}


class _Reader:
    """Reads tensors, reports progress and checks the values."""

    def __init__(self, source: TensorSource, total: int, progress: Progress | None):
        self.source = source
        self._total, self._progress, self._seen = total, progress, set[str]()

    def floats(self, name: str) -> np.ndarray:
        """Returns a tensor, after checking that its values are weights and not, say, packed bits.

        Raises:
          UserError: they are not floating-point numbers.
        """
        self._count(name)
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
        self._count(name)
        return self.source.read_int8(name)

    def int4(self, name: str) -> tuple[Int4, Groups]:
        """Returns a tensor that the source holds in 4 bits, and its groups."""
        self._count(name)
        return self.source.read_int4(name), self.source.int4[name]

    def _count(self, name: str) -> None:
        if self._progress is not None and name not in self._seen:
            self._seen.add(name)  # devices may read it again
            self._progress(len(self._seen), self._total)


def _assemble(parameter: Parameter, reader: _Reader, dtype: Any, part: Part) -> np.ndarray:
    """Returns a part of the parameter's value in `dtype`, in a buffer that jax may adopt."""
    rule = parameter.rule
    if part.cut is None and not rule.stacked_axes:
        value = rule.transform([reader.floats(name) for name in parameter.pieces[0]])
        return value if _adoptable(value, dtype) else _copied(value, dtype)
    stack = aligned_empty(part.shape(parameter.shape), dtype)
    pieces = stack.reshape(-1, *part.shape(parameter.piece))
    for piece, names in zip(pieces, parameter.pieces, strict=True):
        _fill(piece, [reader.floats(name) for name in names], parameter, part)
    return stack


def _fill(
    into: np.ndarray, tensors: Sequence[np.ndarray], parameter: Parameter, part: Part
) -> None:
    """Copies a part of what the parameter's rule makes of the tensors of one layer."""
    if parameter.rule.joins and part.of_rows(parameter.piece):
        part.copy_rows(tensors, into)
    else:
        part.copy(parameter.rule.transform(tensors), into)


def _assemble_int8(
    parameter: Parameter, reader: _Reader, part: Part, scale_cut: Cut | None
) -> Int8:
    """Returns a part of the parameter's value in int8, in buffers that jax may adopt.

    Numbers that the checkpoint holds in int8 are kept, all others are rounded piece by piece.

    Args:
      parameter: the parameter.
      reader: of its tensors.
      part: which part of its values.
      scale_cut: how its scale is divided.
    """
    shape, piece = parameter.shape, parameter.piece
    of_scale = replace(part, cut=scale_cut)
    values = aligned_empty(part.shape(shape), np.int8)
    whole = Int8(values, aligned_empty(of_scale.shape(shape[:-1]), np.float32))
    keeps = parameter.tensors <= reader.source.int8 and parameter.rule.joins
    pieces = Int8(
        whole.values.reshape(-1, *part.shape(piece)),
        whole.scale.reshape(-1, *of_scale.shape(piece[:-1])),
    )
    for values, scale, names in zip(*pieces, parameter.pieces, strict=True):
        if keeps:
            held = [reader.int8(name) for name in names]
            part.copy(parameter.rule.transform([each.values for each in held]), values)
            of_scale.copy(parameter.rule.transform([each.scale for each in held]), scale)
        else:
            _round(names, Int8(values, scale), parameter, reader, (part, of_scale))
    return whole


def _round(
    names: Sequence[str],
    into: Int8,
    parameter: Parameter,
    reader: _Reader,
    parts: tuple[Part, Part],
) -> None:
    """Quantises a part of what the parameter's rule makes of the tensors of one layer.

    They leave memory before those of the next layer are read.

    Args:
      names: of the tensors.
      into: the part's place.
      parameter: the parameter.
      reader: of its tensors.
      parts: which part of the values, and of the scale.
    """
    part, of_scale = parts
    if part.of_rows(parameter.piece) and parameter.rule.joins:
        tensors = [reader.floats(name) for name in names]
        tensor = np.empty(into.values.shape, tensors[0].dtype)
        part.copy_rows(tensors, tensor)
        _quantise(tensor, into, names, reader.source)
        return
    # A row's scale depends on all of the row, of which the part may have a piece.
    made, piece = into, parameter.piece
    if part.cut is not None:
        made = Int8(np.empty(piece, np.int8), np.empty(piece[:-1], np.float32))
    whole = parameter.rule.transform([reader.floats(name) for name in names])
    _quantise(whole, made, names, reader.source)
    if part.cut is not None:
        part.copy(made.values, into.values)
        of_scale.copy(made.scale, into.scale)


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
