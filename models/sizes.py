"""The sizes of a decoder by arithmetic, without building it: `DecoderLM` has the same parameters.

This module imports no jax, so that forecasts need not wait for it.
"""

from emsjax.engine.sizes import Sizes
from emsjax.models.config import DecoderConfig
from emsjax.pallas_kernels.kv_rows import LANES, token_rows


def decoder_sizes(config: DecoderConfig, itemsize: int, platform: str) -> Sizes:
    """Returns the sizes of `DecoderLM(config)` with all weights in one dtype.

    Args:
      config: the configuration.
      itemsize: bytes of a weight and of a number in the cache.
      platform: "cpu", "gpu" or "tpu"; the layout of the cache depends on it.
    """
    width = config.embedding_size or config.hidden_size
    embedding = config.vocab_size * width
    positions = 0
    if config.rope is None:
        positions = (config.max_positions + config.position_offset) * config.hidden_size
    blocks = config.num_layers * _block(config)
    weights = embedding + positions + blocks
    if config.embedding_size is not None:
        weights += 2 * width * config.hidden_size
    if config.final_norm:
        weights += _norm(config)
    if not config.tied:
        weights += embedding  # the head
    # A tied embedding is read in full for the logits, so it is no table of looked-up rows.
    looked_up = positions if config.tied else positions + embedding
    rows = token_rows(config.num_kv_heads, config.head_dim, platform)
    return Sizes(
        weights_bytes=weights * itemsize,
        read_bytes=(weights - looked_up) * itemsize,
        row_flops=2 * blocks,
        logit_flops=2 * embedding,
        token_bytes=config.num_layers * rows * LANES * itemsize,
        token_flops=4 * config.num_layers * config.num_heads * config.head_dim,
        itemsize=itemsize,
    )


def _block(config: DecoderConfig) -> int:
    """Returns the parameters of one layer."""
    queries = config.num_heads * config.head_dim
    projected = queries + 2 * config.num_kv_heads * config.head_dim
    inner = config.intermediate_size * (2 if config.gated else 1)
    return (
        _norms(config) * _norm(config)
        + _linear(config.hidden_size, projected, config.qkv_bias)
        + _linear(queries, config.hidden_size, config.out_bias)
        + _head_norms(config)
        + _linear(config.hidden_size, inner, config.mlp_bias)
        + _linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
    )


def _linear(num_in: int, num_out: int, bias: bool) -> int:
    return num_in * num_out + (num_out if bias else 0)


def _norm(config: DecoderConfig) -> int:
    return config.hidden_size * (2 if config.norm == "layer" and config.norm_bias else 1)


def _norms(config: DecoderConfig) -> int:
    """Returns how many norms of the hidden states a layer has."""
    return 1 if config.one_norm else 4 if config.norm_place == "around" else 2


def _head_norms(config: DecoderConfig) -> int:
    """Returns the parameters of the norms of queries and keys in a layer."""
    heads = {None: 0, "head": 2, "whole": config.num_heads + config.num_kv_heads}
    return heads[config.qk_norm] * config.head_dim
