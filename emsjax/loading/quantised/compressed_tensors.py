"""compressed-tensors, the format of LLM Compressor.

A weight is `(number - zero) * scale`, with one scale per tensor, row, group of columns, or block.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from emsjax.loading.quantised import fp8
from emsjax.loading.quantised.config import Fields
from emsjax.loading.quantised.format import (
    Format,
    Grid,
    Layout,
    Numbers,
    Parts,
    Shape,
    filled_in,
    groups_of,
    unpacked,
)
from emsjax.loading.sources.int8 import Int8
from emsjax.models.groups import Groups

_SCALE, _ZERO, _GROUP_OF = "weight_scale", "weight_zero_point", "weight_g_idx"
_PACKED, _SHAPE = "weight_packed", "weight_shape"
_IGNORED = (*fp8.IGNORED, "input_zero_point")
_PACKED_BITS = (2, 4, 8)
_FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "naive-quantized")


def compressed_tensors(fields: Fields) -> Format:
    """Returns the format that a `quantization_config` of compressed-tensors describes.

    Raises:
      UserError: the configuration uses something that is not supported.
    """
    kind = fields.one_of("format", _FORMATS)
    fields.absent("sparsity_config", neutral=("format", "dense"))
    fields.absent("transform_config", neutral=("config_groups", {}))
    fields.unread("global_compression_ratio", "version", "kv_cache_scheme")
    # Older versions wrote "frozen" for what they compressed.
    fields.one_of("quantization_status", ("compressed", "frozen", None))
    weights = _weights(fields)
    bits = weights.one_of("num_bits", _PACKED_BITS)
    number = weights.one_of("type", ("int", "float"))
    symmetric = weights.one_of("symmetric", (True, False, None)) is not False
    strategy = weights.one_of("strategy", ("tensor", "channel", "group", "block", None))
    weights.unread("dynamic", "observer", "observer_kwargs", "scale_dtype", "zp_dtype")
    orders = ("group", "dynamic", True, "weight", "static", False, None)
    ordered = weights.one_of("actorder", orders) in orders[:3]
    size, block = weights.group_size("group_size"), weights.block("block_structure")
    if kind == "naive-quantized":
        kind = "int-quantized" if number == "int" else "float-quantized"
    weights.check(
        {"int-quantized": (8, "int"), "float-quantized": (8, "float")}.get(kind, (bits, "int"))
        == (bits, number),
        f"{bits} bits of type {number} for {kind}",
    )
    if kind == "float-quantized":
        weights.check(symmetric, "8-bit floats that are not symmetric")
        return _floats(block if strategy == "block" else None)
    # A scale per row is one group of all columns.
    grouped = size if strategy in ("group", None) else None
    name = f"compressed-tensors {kind} ({bits} bits)"
    if kind == "pack-quantized":
        return _packed(name, bits, grouped, symmetric, ordered and grouped is not None)
    return _whole(name, grouped, symmetric)


def _weights(fields: Fields) -> Fields:
    """Returns the fields of the weights, which must be the same in all groups of modules."""
    groups = [group.inside("weights") for group in fields.values("config_groups")]
    fields.check(all(each == groups[0] for each in groups), "config_groups that differ in weights")
    return groups[0]


def _floats(block: Shape | None) -> Format:
    return Format(
        name="compressed-tensors float-quantized",
        marker="weight",
        dtypes=fp8.DTYPES,
        needed=(_SCALE,),
        ignored=(*_IGNORED, _ZERO),
        scales=(_SCALE,),
        layout=partial(fp8.layout, block, _SCALE),
        dequantised=partial(fp8.dequantised, block, _SCALE),
    )


def _whole(name: str, size: int | None, symmetric: bool) -> Format:
    """Returns the format of weights that lie in int8, [out, in]."""
    keeps = size is None and symmetric
    return Format(
        name=name,
        marker="weight",
        dtypes=frozenset({"I8"}),
        needed=(_SCALE,) if symmetric else (_SCALE, _ZERO),
        ignored=_IGNORED + ((_ZERO,) if symmetric else ()),
        scales=(_SCALE,),
        layout=lambda shapes: _layout(shapes["weight"], size),
        dequantised=lambda parts: _numbers(parts, parts["weight"], parts.get(_ZERO)).dequantised(
            size
        ),
        int8=_kept if keeps else None,
    )


def _packed(name: str, bits: int, size: int | None, symmetric: bool, ordered: bool) -> Format:
    """Returns the format of weights that lie in int32 words along the inputs, lowest bits first."""

    def numbers(words: np.ndarray) -> np.ndarray:
        # The bits hold how far a number is above the smallest one.
        return unpacked(words, bits).astype(np.int16) - np.int16(2 ** (bits - 1))

    def read(parts: Parts) -> Numbers:
        zeros = parts.get(_ZERO)
        if zeros is not None:
            zeros = numbers(zeros.T).T  # packed along the outputs
        num_in = int(parts[_SHAPE][1])
        return _numbers(parts, numbers(parts[_PACKED])[:, :num_in], zeros)

    def groups(
        shapes: Mapping[str, Shape], dtypes: Mapping[str, str], part: Callable[[str], np.ndarray]
    ) -> Groups | None:
        group_of = filled_in(part(_GROUP_OF)) if _GROUP_OF in shapes else None
        num_in = int(part(_SHAPE)[1])
        if num_in < 8 * shapes[_PACKED][1]:  # the last word holds fewer
            return None
        return groups_of(size, not symmetric, num_in, dtypes[_SCALE], group_of)

    zero, group = () if symmetric else (_ZERO,), (_GROUP_OF,) if ordered else ()
    return Format(
        name=name,
        marker=_PACKED,
        dtypes=frozenset({"I32"}),
        needed=(_SHAPE, _SCALE, *zero, *group),
        optional=() if ordered else (_GROUP_OF,),
        group_of=_GROUP_OF,
        ignored=_IGNORED + ((_ZERO,) if symmetric else ()),
        scales=(_SCALE,),
        header=_SHAPE,
        layout=partial(_packed_layout, 32 // bits, size),
        dequantised=lambda parts: read(parts).dequantised(size),
        int4=Grid(groups, lambda parts, offsets: read(parts).int4(0, offsets))
        if bits == 4
        else None,
    )


def _layout(shape: Shape, size: int | None, packed_zeros: int = 1) -> Layout:
    """Returns the layout of weights of a shape, with so many zeros to a word."""
    num_out, num_in = shape
    groups = -(-num_in // (size or num_in))
    scales: list[Shape] = [(num_out, groups)]
    if size is None:
        scales += [(), (1,), (num_out,)]
    zeros = [(-(-num_out // packed_zeros), groups)] if packed_zeros > 1 else scales
    parts = {_SCALE: scales, _ZERO: zeros, _GROUP_OF: [(num_in,)]}
    return Layout((num_out, num_in), parts, groups)


def _packed_layout(
    packed: int, size: int | None, shapes: Mapping[str, Shape], stored: np.ndarray
) -> Layout:
    """Returns the layout of weights whose shape a part holds; a row's last word may hold fewer."""
    num_out, num_in = map(int, stored.reshape(-1))
    found = _layout((num_out, num_in), size, packed)
    words = [(num_out, -(-num_in // packed))]
    return Layout(found.shape, {_SHAPE: [(2,)], _PACKED: words, **found.parts}, found.groups)


def _numbers(parts: Parts, values: np.ndarray, zeros: np.ndarray | None) -> Numbers:
    num_out = len(values)
    return Numbers(
        values,
        _rows(parts[_SCALE].astype(np.float32), num_out),
        None if zeros is None else _rows(zeros, num_out),
        filled_in(parts.get(_GROUP_OF)),
    )


def _rows(values: np.ndarray, num_out: int) -> np.ndarray:
    """Returns numbers per tensor, row or group as [out, groups]."""
    if values.size == 1:
        return np.broadcast_to(values.reshape(1, 1), (num_out, 1))
    return values.reshape(-1, values.shape[-1] if values.ndim == 2 else 1)[:num_out]


def _kept(parts: Parts) -> Int8:
    values = parts["weight"]
    scale = np.broadcast_to(parts[_SCALE].astype(np.float32).reshape(-1), (len(values),))
    return Int8(values, scale)
