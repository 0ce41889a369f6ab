"""Writes a tiny Llama in the formats of other libraries, from their specifications.

Each function makes up the numbers of a module's weights [out, in] and returns its tensors and, by
the format's definition, the weights that they stand for.
"""

import itertools
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

GROUP = 32
BLOCK = (48, 40)  # no divisor of any side, so that blocks at the edges are cut off
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Tensors = dict[str, np.ndarray]
Module = tuple[Tensors, np.ndarray]
RNG = np.random.default_rng(0)


def words(numbers: np.ndarray, order: tuple[int, ...] = tuple(range(8)), bits: int = 4) -> Any:
    """Packs numbers [rows, n] into int32[rows, n * bits / 32]; field j holds number order[j].

    The last word is filled up with zeros.
    """
    per = 32 // bits
    numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % per)))
    packed = np.zeros((numbers.shape[0], numbers.shape[1] // per), np.uint32)
    for row, word in np.ndindex(packed.shape):
        for field in range(per):
            place = order[field] if bits == 4 else field
            packed[row, word] |= np.uint32(int(numbers[row, per * word + place]) << (bits * field))
    return packed.view(np.int32)


def drawn(num_out: int, num_in: int, low: int, high: int) -> np.ndarray:
    return RNG.integers(low, high, (num_out, num_in))


def scales_of(*shape: int, dtype: Any = np.float16) -> np.ndarray:
    return RNG.uniform(0.01, 0.04, shape).astype(dtype)


def weights(numbers: np.ndarray, zeros: Any, scales: np.ndarray, group_of: np.ndarray) -> Any:
    """Returns (number - zero) * scale for each number, with zeros and scales [out, groups]."""
    made = np.empty(numbers.shape, np.float32)
    for row, column in np.ndindex(numbers.shape):
        group = group_of[column]
        zero = zeros if np.isscalar(zeros) else zeros[row, group]
        made[row, column] = np.float32(numbers[row, column] - zero) * np.float32(scales[row, group])
    return made


def in_order(num_in: int) -> np.ndarray:
    return (np.arange(num_in) // GROUP).astype(np.int32)


def gptq(
    num_out: int, num_in: int, above: int = 1, act_order: np.random.Generator | None = None
) -> Module:
    """Stores zeros less `above`, 1 in the first version of the format and 0 in the second."""
    numbers, groups = drawn(num_out, num_in, 0, 16), -(-num_in // GROUP)
    zeros, scales = drawn(num_out, groups, 1, 16), scales_of(num_out, groups)
    group_of = in_order(num_in)
    if act_order is not None:
        group_of = act_order.permutation(group_of)
    tensors = {
        "qweight": words(numbers).T,
        "qzeros": words(zeros.T - above),
        "scales": scales.T,
        "g_idx": group_of,
        "bias": np.zeros(num_out, np.float16),
    }
    return tensors, weights(numbers, zeros, scales, group_of)


def gptq_act_order() -> Callable[[int, int], Module]:
    """Returns a writer of a Llama's layers, in which modules of the same inputs have one order."""
    seen, of_layer = itertools.count(), len("qkvogud")

    def write(num_out: int, num_in: int) -> Module:
        layer = next(seen) // of_layer
        return gptq(num_out, num_in, act_order=np.random.default_rng((num_in, layer)))

    return write


def gptq_with_zeros_of_0(num_out: int, num_in: int) -> Module:
    """Stores words of zeros less 1 in each place, as GPTQModel does: a zero of 0 borrows."""
    numbers, groups = drawn(num_out, num_in, 0, 16), -(-num_in // GROUP)
    zeros, scales = drawn(num_out, groups, 0, 3), scales_of(num_out, groups)
    tensors = {
        "qweight": words(numbers).T,
        "qzeros": (words(zeros.T).astype(np.int64) - 0x11111111).astype(np.int32),
        "scales": scales.T,
    }
    return tensors, weights(numbers, zeros, scales, in_order(num_in))


def gptq_symmetric(stored: int) -> Callable[[int, int], Module]:
    """Returns a writer of symmetric weights whose zeros, all 8, are stored as 7 or 8."""

    def write(num_out: int, num_in: int) -> Module:
        numbers, groups = drawn(num_out, num_in, 0, 16), num_in // GROUP
        scales = scales_of(num_out, groups)
        zeros = np.full((groups, num_out), stored)
        tensors = {"qweight": words(numbers).T, "qzeros": words(zeros), "scales": scales.T}
        return tensors, weights(numbers, 8, scales, in_order(num_in))

    return write


def awq(num_out: int, num_in: int) -> Module:
    numbers, groups = drawn(num_out, num_in, 0, 16), num_in // GROUP
    zeros, scales = drawn(num_out, groups, 0, 16), scales_of(num_out, groups)
    tensors = {
        "qweight": words(numbers.T, AWQ_ORDER),
        "qzeros": words(zeros.T, AWQ_ORDER),
        "scales": scales.T,
    }
    return tensors, weights(numbers, zeros, scales, in_order(num_in))


def packed(num_out: int, num_in: int, asymmetric: bool = False) -> Module:
    numbers, groups = drawn(num_out, num_in, -8, 8), -(-num_in // GROUP)
    scales = scales_of(num_out, groups, dtype=ml_dtypes.bfloat16)
    tensors = {
        "weight_packed": words(numbers + 8),
        "weight_scale": scales,
        "weight_shape": np.array([num_out, num_in]),
    }
    if not asymmetric:
        return tensors, weights(numbers, 0, scales, in_order(num_in))
    zeros = drawn(num_out, groups, -8, 8)
    tensors["weight_zero_point"] = words(zeros.T + 8).T
    return tensors, weights(numbers, zeros, scales, in_order(num_in))


def int8(num_out: int, num_in: int, name: str = "weight_scale", factor: float = 1) -> Module:
    values = drawn(num_out, num_in, -128, 128).astype(np.int8)
    scales = (scales_of(num_out, 1, dtype=np.float32) / 16).astype(ml_dtypes.bfloat16)
    tensors = {"weight": values, name: scales}
    return tensors, values * (scales.astype(np.float32) * np.float32(factor))


def bitsandbytes(num_out: int, num_in: int) -> Module:
    values = drawn(num_out, num_in, -127, 128).astype(np.int8)
    largest = scales_of(num_out, dtype=np.float32) * 8
    tensors = {"weight": values, "SCB": largest, "weight_format": np.zeros((), np.uint8)}
    return tensors, values * (largest * np.float32(1 / 127))[:, None]


NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)


def bytes_of(described: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(described).encode(), np.uint8)


def bitsandbytes_4bit(
    num_out: int, num_in: int, kind: str = "nf4", double: bool = True, block: int = 96
) -> Module:
    """Returns weights whose last block is cut off, as is the last block of scales.

    bitsandbytes takes powers of two for blocks, which here divide the weights.
    """
    size = num_out * num_in
    numbers, table = drawn(1, size, 0, 16)[0], NF4 if kind == "nf4" else (*FP4, *-FP4)
    count = -(-size // block)
    described: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": block,
        "dtype": "bfloat16",
        "shape": [num_out, num_in],
    }
    scales = scales_of(count, dtype=np.float32) * 8
    tensors = {
        "weight": (numbers[::2] << 4 | numbers[1::2]).astype(np.uint8)[:, None],
        "weight.absmax": scales,
        "weight.quant_map": np.array(table, np.float32),
    }
    if double:
        inner, codes = drawn(1, count, 0, 256)[0], scales_of(256, dtype=np.float32)
        outer = scales_of(-(-count // 10), dtype=np.float32) * 8
        tensors |= {"weight.absmax": inner.astype(np.uint8), "weight.nested_absmax": outer}
        tensors["weight.nested_quant_map"] = codes
        described |= {"nested_blocksize": 10, "nested_dtype": "float32", "nested_offset": 0.03125}
        scales = np.array(
            [codes[inner[n]] * outer[n // 10] + np.float32(0.03125) for n in range(count)]
        )
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = bytes_of(described)
    made = [np.float32(table[number]) * scales[n // block] for n, number in enumerate(numbers)]
    return tensors, np.array(made, np.float32).reshape(num_out, num_in)


def floats(num_out: int, num_in: int, *shape: int, scale: str = "weight_scale") -> Module:
    """Returns 8-bit floats with scales of a shape that spreads over the weights."""
    values = RNG.normal(size=(num_out, num_in)).astype(ml_dtypes.float8_e4m3fn)
    scales = scales_of(*shape, dtype=np.float32) * 4
    spread = scales.reshape(-1, 1) if scales.size > 1 else scales.reshape(1, 1)
    return {"weight": values, scale: scales}, values.astype(np.float32) * spread


def blocks(num_out: int, num_in: int) -> Module:
    values = RNG.normal(size=(num_out, num_in)).astype(ml_dtypes.float8_e4m3fn)
    scales = scales_of(-(-num_out // BLOCK[0]), -(-num_in // BLOCK[1]), dtype=np.float32) * 4
    made = np.empty(values.shape, np.float32)
    for row, column in np.ndindex(made.shape):
        scale = scales[row // BLOCK[0], column // BLOCK[1]]
        made[row, column] = np.float32(values[row, column]) * scale
    return {"weight": values, "weight_scale_inv": scales}, made


def described(form: str, number: str, bits: int, **more: Any) -> dict[str, Any]:
    """Returns a `quantization_config` of compressed-tensors, as LLM Compressor writes it."""
    scheme = {
        "num_bits": bits,
        "type": number,
        "symmetric": True,
        "strategy": "channel",
        "group_size": None,
        "block_structure": None,
        "dynamic": False,
        "observer": "minmax",
        "observer_kwargs": {},
        "actorder": None,
    }
    group = {"targets": ["Linear"], "weights": scheme | more, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "quantization_status": "compressed",
        "version": "0.20.1",
    }


class Case(NamedTuple):
    """A format: its configuration, its writer, and the bits of numbers that are kept."""

    config: dict[str, Any]
    write: Callable[[int, int], Module]
    kept: int | None = None


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "damp_percent": 0.01}
_GROUPS = {"strategy": "group", "group_size": GROUP}
_BITS_4 = {
    "quant_method": "bitsandbytes",
    "_load_in_4bit": True,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_threshold": 6.0,
    "llm_int8_skip_modules": None,
}
CASES = {
    "gptq": Case(_GPTQ | {"sym": False, "desc_act": False}, gptq, kept=4),
    "gptq-zeros-of-0": Case(_GPTQ | {"sym": False}, gptq_with_zeros_of_0, kept=4),
    "gptq-v2": Case(
        _GPTQ | {"sym": False, "checkpoint_format": "gptq_v2", "desc_act": True},
        lambda *shape: gptq(*shape, above=0, act_order=RNG),
        kept=4,
    ),
    "gptq-act-order": Case(_GPTQ | {"sym": False, "desc_act": True}, gptq_act_order(), kept=4),
    "gptq-symmetric": Case(_GPTQ | {"sym": True}, gptq_symmetric(7), kept=4),
    "gptq-v2-by-the-wrong-name": Case(
        _GPTQ | {"sym": True, "checkpoint_format": "gptq"}, gptq_symmetric(8), kept=4
    ),
    "awq": Case(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": None,
        },
        awq,
        kept=4,
    ),
    "packed": Case(described("pack-quantized", "int", 4, **_GROUPS), packed, kept=4),
    "packed-asymmetric": Case(
        described("pack-quantized", "int", 4, symmetric=False, **_GROUPS),
        lambda *shape: packed(*shape, asymmetric=True),
        kept=4,
    ),
    "int8": Case(described("int-quantized", "int", 8), int8, kept=8),
    "floats": Case(
        described("float-quantized", "float", 8), lambda *shape: floats(*shape, shape[0], 1)
    ),
    "fp8-tensor": Case({"quant_method": "fp8", "activation_scheme": "static"}, floats),
    "fp8-tensor-by-transformers": Case(
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        partial(floats, scale="weight_scale_inv"),
    ),
    "fp8-blocks": Case(
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": list(BLOCK),
            "modules_to_not_convert": ["lm_head"],
        },
        blocks,
    ),
    "bitsandbytes": Case(
        {
            "quant_method": "bitsandbytes",
            "_load_in_8bit": True,
            "load_in_8bit": True,
            "load_in_4bit": False,
            "llm_int8_threshold": 6.0,
            "bnb_4bit_quant_type": "fp4",
        },
        bitsandbytes,
        kept=8,
    ),
    "bitsandbytes-nf4": Case(_BITS_4 | {"bnb_4bit_use_double_quant": True}, bitsandbytes_4bit),
    "bitsandbytes-fp4": Case(
        _BITS_4 | {"bnb_4bit_quant_type": "fp4"},
        partial(bitsandbytes_4bit, kind="fp4", double=False),
    ),
}
