"""The sizes of a decoder by arithmetic, without building it: `DecoderLM` has the same parameters.

This module imports no jax, so that forecasts need not wait for it.
"""

import math
from typing import NamedTuple

from emsjax.engine.sizes import Exchange, Sizes
from emsjax.limits import PLANNED_GROUP
from emsjax.models.config import DecoderConfig
from emsjax.pallas_kernels.kv_rows import LANES, token_bytes

_SCALE_BYTES = 4
# Each device's largest logit of a row, and its place.
_CHOICE_BYTES = 8
# How matrices are kept: as floats, in int8 with a scale per row, or in 4 bits with one per group.
_FLOATS, _INT8, _INT4 = None, "int8", "int4"


def planned_group(num_in: int) -> int:
    """Returns the inputs of a group of 4-bit weights in a forecast, the most that divide them."""
    return math.gcd(num_in, PLANNED_GROUP)


class _Count(NamedTuple):
    """Numbers of parameters.

    Attributes:
      weights: in matrices that can be quantised.
      rows: of these matrices, each of which has a scale if they are in int8.
      groups: of these matrices, each of which has a scale if they are in 4 bits.
      others: in norms, biases and position embeddings.
    """

    weights: int = 0
    rows: int = 0
    groups: int = 0
    others: int = 0

    def plus(self, *more: "_Count") -> "_Count":
        """Returns the sum of these and more."""
        return _Count(*(sum(numbers) for numbers in zip(self, *more, strict=True)))

    def wide(self) -> "_Count":
        """Returns the numbers if no matrix is quantised, whatever others are."""
        return _Count(others=self.weights + self.others)

    def times(self, layers: int) -> "_Count":
        """Returns the numbers of several layers."""
        return _Count(*(layers * number for number in self))

    def scales(self, kind: str | None) -> int:
        """Returns the number of scales."""
        return {_FLOATS: 0, _INT8: self.rows, _INT4: self.groups}[kind]

    def nbytes(self, itemsize: int, kind: str | None) -> int:
        """Returns their bytes, with `itemsize` bytes for what is not quantised."""
        bits = {_FLOATS: 8 * itemsize, _INT8: 8, _INT4: 4}[kind]
        return self.weights * bits // 8 + self.scales(kind) * _SCALE_BYTES + self.others * itemsize

    def numbers(self, kind: str | None) -> int:
        """Returns how many numbers there are, scales included."""
        return self.weights + self.others + self.scales(kind)


def decoder_sizes(
    config: DecoderConfig,
    itemsize: int,
    platform: str,
    quantize: str | None = None,
    kv_dtype: str | None = None,
) -> Sizes:
    """Returns the sizes of `DecoderLM(config)`.

    Args:
      config: the configuration.
      itemsize: bytes of a number in the activations, and in what is not quantised.
      platform: "cpu", "gpu" or "tpu"; the layout of the cache depends on it.
      quantize: "int8" for int8 weights, "int4" for layers in 4 bits as in files, or None.
      kv_dtype: "int8" for an int8 cache, or None.
    """
    heads, int8 = (config.num_kv_heads, config.head_dim), kv_dtype is not None
    width = config.embedding_size or config.hidden_size
    # Files of 4 bits keep what is outside of layers wide.
    outside = _Count.wide if quantize == _INT4 else _Count.plus
    embedding = outside(_matrix(width, config.vocab_rows))
    rows = 0 if config.rope is not None else config.max_positions + config.position_offset
    positions = _Count(others=rows * config.hidden_size)
    experts, mlps = _experts(config), _mlps(config)
    blocks = _attention(config).times(config.num_layers).plus(mlps, experts)
    parts = [embedding, positions, blocks]
    if config.embedding_size is not None:
        sizes = (width, config.hidden_size)
        parts += [outside(_matrix(*sizes)), outside(_matrix(*sizes[::-1]))]
    if config.final_norm:
        parts.append(_norm(config))
    if not config.tied:
        parts.append(embedding)  # the head
    if config.logit_bias:
        parts.append(_Count(others=config.vocab_size))
    # A tied embedding is read in full for the logits, so it is no table of looked-up rows.
    looked_up = positions if config.tied else positions.plus(embedding)
    weights_bytes = _Count().plus(*parts).nbytes(itemsize, quantize)
    expert_bytes = experts.nbytes(itemsize, quantize)
    left_out = (1 - config.expert_share) * experts.numbers(quantize)
    return Sizes(
        weights_bytes=weights_bytes,
        read_bytes=weights_bytes - looked_up.nbytes(itemsize, quantize) - expert_bytes,
        row_flops=round(2 * (blocks.numbers(quantize) - left_out)),
        logit_flops=2 * config.vocab_rows * width,
        token_bytes=config.num_layers * token_bytes(*heads, platform, itemsize, int8),
        token_flops=4 * config.num_layers * config.num_heads * config.head_dim,
        itemsize=itemsize,
        expert_bytes=expert_bytes,
        expert_share=config.expert_share,
        devices=config.shards,
        exchanges=exchanges(config, itemsize),
    )


def grouped_sizes(config: DecoderConfig) -> tuple[int, int]:
    """Returns the bytes that a TPU's kernel of products with 4-bit weights reads, scales included.

    And the operations for each row. Products whose inputs are no multiple of a tile have no kernel.
    """
    attention = [
        (config.hidden_size, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim),
        (config.num_heads * config.head_dim, config.hidden_size),
    ]
    up = config.intermediate_size * (2 if config.gated else 1)
    mlp = [(config.hidden_size, up), (config.intermediate_size, config.hidden_size)]
    plain = config.num_layers if config.experts is None else len(config.dense_layers)
    found = _Count()
    for products, layers in ((attention, config.num_layers), (mlp, plain)):
        for num_in, num_out in products:
            if num_in % LANES == 0:
                found = found.plus(_matrix(num_in, num_out).times(layers))
    return found.weights // 2 + found.groups * _SCALE_BYTES, 2 * found.weights


def exchanges(config: DecoderConfig, itemsize: int) -> tuple[Exchange, ...]:
    """Returns what the devices that share `DecoderLM(config)` exchange in a step of greedy batches.

    Args:
      config: of one device's share.
      itemsize: bytes of a number in the activations.
    """
    if config.shards == 1:
        return ()
    width = config.embedding_size or config.hidden_size
    sublayers = 2 * config.num_layers
    found = [
        Exchange(sublayers, config.hidden_size * itemsize),
        Exchange(1, width * itemsize),
        Exchange(1, config.shards * _CHOICE_BYTES),
    ]
    if config.qk_norm == "whole":  # the sums of squares of queries and keys
        found.append(Exchange(sublayers, 4))
    return tuple(found)


def _attention(config: DecoderConfig) -> _Count:
    """Returns the parameters of one layer besides its feed-forward layer."""
    queries = config.num_heads * config.head_dim
    projected = queries + 2 * config.num_kv_heads * config.head_dim
    sinks = config.num_heads if config.sinks else 0
    return _Count(others=_head_norms(config) + sinks).plus(
        _norm(config).times(_norms(config)),
        _matrix(config.hidden_size, projected, config.qkv_bias),
        _matrix(queries, config.hidden_size, config.out_bias),
    )


def _mlps(config: DecoderConfig) -> _Count:
    """Returns the parameters of all plain feed-forward layers, and of all routers."""
    plain = _mlp(config, config.intermediate_size, config.mlp_bias)
    if config.experts is None:
        return plain.times(config.num_layers)
    router = _Count(others=config.experts.number * (config.hidden_size + config.experts.bias))
    return plain.times(len(config.dense_layers)).plus(router.times(_layers_with_experts(config)))


def _experts(config: DecoderConfig) -> _Count:
    """Returns the parameters of all experts."""
    if config.experts is None:
        return _Count()
    number = config.experts.number * _layers_with_experts(config)
    return _mlp(config, config.experts.width, config.experts.bias).times(number)


def _layers_with_experts(config: DecoderConfig) -> int:
    return config.num_layers - len(config.dense_layers)


def _mlp(config: DecoderConfig, inner: int, bias: bool) -> _Count:
    """Returns the parameters of one feed-forward layer."""
    width, up = config.hidden_size, inner * (2 if config.gated else 1)
    return _matrix(width, up, bias).plus(_matrix(inner, width, bias))


def _matrix(num_in: int, num_out: int, bias: bool = False) -> _Count:
    groups = num_in // planned_group(num_in)
    return _Count(num_in * num_out, num_out, groups * num_out, num_out if bias else 0)


def _norm(config: DecoderConfig) -> _Count:
    biased = config.norm == "layer" and config.norm_bias
    return _Count(others=config.hidden_size * (2 if biased else 1))


def _norms(config: DecoderConfig) -> int:
    """Returns how many norms of the hidden states a layer has."""
    return 1 if config.one_norm else 4 if config.norm_place == "around" else 2


def _head_norms(config: DecoderConfig) -> int:
    """Returns the parameters of the norms of queries and keys in a layer."""
    every = config.num_heads + config.num_kv_heads
    heads = {None: 0, "head": 2, "each": every, "whole": every}[config.qk_norm]
    biased = config.norm == "layer" and config.norm_bias and config.qk_norm != "each"
    return heads * config.head_dim * (2 if biased else 1)
