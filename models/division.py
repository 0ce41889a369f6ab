"""How devices share a model (tensor parallelism, Megatron-LM, arXiv 1909.08053).

Every device runs the decoder with a configuration of its own: its share of the heads, of the inner
width and of the vocabulary. It holds the rows that make these and the columns that take them, so
that devices add their results twice in a layer. If there are more devices than key/value heads,
several hold the same ones.

This module imports jax only where it needs it, so that forecasts need not wait for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emsjax.models.config import DecoderConfig
from emsjax.shapes import SHARDS

if TYPE_CHECKING:
    from jax.sharding import PartitionSpec

# Axes of parameters, from the end.
_ROWS, _COLUMNS = -2, -1


def share_of(config: DecoderConfig, shards: int, *, ordered_sums: bool = False) -> DecoderConfig:
    """Returns the configuration of each of the devices that share a model.

    Args:
      config: of the whole model.
      shards: the number of devices.
      ordered_sums: see `DecoderConfig`.

    Raises:
      ValueError: the model cannot be divided so; the message says what is not divisible.
    """
    if shards == 1:
        return config
    if (problem := _problem(config, shards)) is not None:
        raise ValueError(problem)
    experts = config.experts
    return replace(
        config,
        num_heads=config.num_heads // shards,
        num_kv_heads=max(config.num_kv_heads // shards, 1),
        intermediate_size=config.intermediate_size // shards,
        experts=None if experts is None else replace(experts, width=experts.width // shards),
        shards=shards,
        ordered_sums=ordered_sums,
    )


def possible_shares(config: DecoderConfig) -> list[int]:
    """Returns the numbers of devices that can share a model, the smallest first."""
    most = range(1, config.num_heads + 1)
    return [number for number in most if _problem(config, number) is None]


def _problem(config: DecoderConfig, shards: int) -> str | None:
    """Returns why so many devices cannot share a model, or None if they can."""
    if config.num_heads % shards:
        return f"{config.num_heads} query heads"
    if config.num_kv_heads % shards and shards % config.num_kv_heads:
        return f"{config.num_kv_heads} key/value heads"
    widths = {None if each is None else each.width for each in config.experts_of_stacks}
    for width in widths:
        inner = config.intermediate_size if width is None else width
        if inner % shards:
            return f"an inner width of {inner}"
    if shards > 1 and config.qk_norm == "whole" and config.norm == "layer":
        return "a layer norm over all heads"
    return None


@dataclass(frozen=True)
class Cut:
    """How one parameter is divided.

    Attributes:
      axis: the axis that is cut, from the end.
      parts: sizes of the parts that are joined along it, such as queries, keys and values. Each
        device has a piece of every part.
      sharing: for each part, how many neighbouring devices have the same piece.
      piece: size of a device's piece of a part that is padded, the vocabulary; None without
        padding.
    """

    axis: int
    parts: tuple[int, ...]
    sharing: tuple[int, ...] = (1,)
    piece: int | None = None

    def size(self, shards: int) -> int:
        """Returns the size of a device's share."""
        if self.piece is not None:
            return self.piece
        pairs = zip(self.parts, self.sharing, strict=True)
        return sum(part * sharing // shards for part, sharing in pairs)

    def ranges(self, shard: int, shards: int) -> Iterator[slice]:
        """Yields the ranges along the axis that a device has, without padding."""
        start = 0
        for part, sharing in zip(self.parts, self.sharing, strict=True):
            size = self.piece or part * sharing // shards
            first = start + shard // sharing * size
            end = start + part
            yield slice(min(first, end), min(first + size, end))
            start = end

    def spec(self, ndim: int) -> "PartitionSpec":
        """Returns the place of a parameter with so many axes on the mesh."""
        from jax.sharding import PartitionSpec

        axes: list[str | None] = [None] * ndim
        axes[self.axis] = SHARDS
        return PartitionSpec(*axes)


def cut_of(path: str, shape: Sequence[int], config: DecoderConfig, shards: int) -> Cut | None:
    """Returns how a parameter is divided; None if every device has all of it.

    Args:
      path: of the parameter, such as "blocks.attention.qkv.kernel".
      shape: of the whole parameter.
      config: of the whole model.
      shards: the number of devices.
    """
    *_, module, name = ("", *path.split("."))
    if name == "kernel_order":
        return None
    axis = _ROWS if name in ("kernel", "tokens") else _COLUMNS
    if path in ("embedder.tokens", "embedder.tokens_scale") or module == "head":
        return Cut(axis, (config.vocab_size,), piece=replace(config, shards=shards).vocab_rows)
    if module == "up":
        halves = 2 if config.gated else 1
        return Cut(axis, (shape[axis] // halves,) * halves, (1,) * halves)
    if module in ("out", "down"):
        # The scales of groups are [G, out], so that groups are rows.
        if name not in ("kernel", "kernel_scales", "kernel_offsets"):
            return None
        axis = _COLUMNS if name == "kernel" else _ROWS
        return Cut(axis, (shape[axis],))
    return _cut_of_heads(module, name, shape, config, shards)


def _cut_of_heads(
    module: str, name: str, shape: Sequence[int], config: DecoderConfig, shards: int
) -> Cut | None:
    """Returns how a parameter of queries, keys or values is divided."""
    # Devices share a key/value head if there are more of them.
    sharing = max(shards // config.num_kv_heads, 1)
    if module == "qkv":
        keys = config.num_kv_heads * config.head_dim
        queries = config.num_heads * config.head_dim
        axis = _ROWS if name == "kernel" else _COLUMNS
        return Cut(axis, (queries, keys, keys), (1, sharing, sharing))
    if name == "sinks":
        return Cut(_COLUMNS, (config.num_heads,))
    if module in ("q_norm", "k_norm") and config.qk_norm != "head":
        axis = _ROWS if config.qk_norm == "each" else _COLUMNS
        return Cut(axis, (shape[axis],), (sharing if module == "k_norm" else 1,))
    return None
