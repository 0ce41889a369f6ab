"""The block sizes that are tried for each kernel. Those that do not compile are passed over."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any

from emsjax.pallas_kernels.kv_rows import LANES

Choice = dict[str, int]


def _attention_on_tpu(sizes: Any, blocks: Any) -> Iterator[Choice]:
    del blocks
    for kv, piece in product((128, 256, 512, 1024), (16, 32, 64, 128)):
        if sizes.capacity % kv == 0:
            yield {"kv": kv, "piece": piece}


def _attention_on_hopper(sizes: Any, blocks: Any) -> Iterator[Choice]:
    for section, stages in product((128, 256, 512, 1024, 2048), range(2, blocks.stages + 3)):
        if section <= sizes.capacity:
            yield {"section": section, "stages": stages}


def _attention_in_triton(sizes: Any, blocks: Any) -> Iterator[Choice]:
    for choice in _attention_on_hopper(sizes, blocks):
        if choice["stages"] == blocks.stages:
            yield {"section": choice["section"]}


def _product(sizes: Any, blocks: Any) -> Iterator[Choice]:
    del blocks
    for parts in (1, 2, 4, 8, 16, 32):
        if sizes.num_in % (parts * LANES) == 0:
            yield {"parts": parts}


def _experts_on_tpu(sizes: Any, blocks: Any) -> Iterator[Choice]:
    del blocks
    for outs in (128, 256, 512, 1024, 2048, 4096):
        if outs <= sizes.num_out:
            yield {"outs": outs}


# By kernel: takes the sizes and the heuristics' choice of a lookup.
CANDIDATES: Mapping[str, Callable[[Any, Any], Iterator[Choice]]] = MappingProxyType(
    {
        "ragged_attention/tpu": _attention_on_tpu,
        "ragged_attention/gpu": _attention_on_hopper,
        "ragged_attention/gpu-triton": _attention_in_triton,
        "layer_matmul/gpu": _product,
        "layer_matmul/gpu-triton": _product,
        "expert_matmul/tpu": _experts_on_tpu,
    }
)
