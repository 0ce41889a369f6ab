"""What a step would cost on hardware that is not here, from bytes and operations.

A step reads all weights and every slot's cached tokens, and multiplies every row with every weight.
Where reading and multiplying overlap, the longer of the two counts, else both; attention comes on
top. What shares of the published rates are reached is assumed, not measured: the result is an
estimate.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from emsjax.costs.hardware import Hardware
from emsjax.engine.ladder import Rung
from emsjax.engine.model import Sizes
from emsjax.engine.worth import StepCosts

BANDWIDTH_SHARE, COMPUTE_SHARE = 0.8, 0.6


def attended(windows: Sequence[int], context: float) -> float:
    """Cached tokens that a layer reads of a sample, on average; `windows` as in `DecoderConfig`."""
    if not windows:
        return context
    return sum(min(context, window or context) for window in windows) / len(windows)


class Bounds(NamedTuple):
    """Seconds of a step on each rung, were there nothing in the cache.

    Attributes:
      reading: float64[R], all weights.
      computing: float64[R], all products with them.
    """

    reading: np.ndarray
    computing: np.ndarray


def bounds(sizes: Sizes, hardware: Hardware, ladder: Sequence[Rung], emitting: int) -> Bounds:
    """What each rung takes at least.

    Args:
      sizes: of the model.
      hardware: the device.
      ladder: rungs.
      emitting: the most rows behind which a token is chosen.
    """
    rows = np.asarray([rung.capacity for rung in ladder], np.float64)
    operations = sizes.row_flops * rows + sizes.logit_flops * np.minimum(rows, emitting)
    reading = np.full(len(rows), sizes.read_bytes / _bandwidth(hardware))
    return Bounds(reading, operations / _matrix_rate(hardware, sizes))


def estimated_costs(
    sizes: Sizes,
    hardware: Hardware,
    ladder: Sequence[Rung],
    *,
    num_slots: int,
    draft_length: int,
    drafter_bytes: int = 0,
) -> StepCosts:
    """Seconds of a step on every rung.

    Args:
      sizes: of the model.
      hardware: the device.
      ladder: rungs.
      num_slots: B.
      draft_length: k.
      drafter_bytes: weights that drafting a token reads; 0 for a drafter that looks up.
    """
    least = bounds(sizes, hardware, ladder, num_slots * (draft_length + 1))
    seconds = _together(hardware, *least).astype(np.float32)
    # Every row meets every number of a drafter, too.
    computing = 2 * num_slots * drafter_bytes / sizes.itemsize / _matrix_rate(hardware, sizes)
    draft = _together(hardware, drafter_bytes / _bandwidth(hardware), computing)
    cached = cached_costs(sizes, hardware, ladder, num_slots)
    return StepCosts(seconds, cached, np.float32(draft))


def cached_costs(
    sizes: Sizes, hardware: Hardware, ladder: Sequence[Rung], num_slots: int
) -> np.ndarray:
    """Seconds that each cached token adds, float32[R]: read once, multiplied with its slot's rows.

    Args:
      sizes: of the model.
      hardware: the device.
      ladder: rungs.
      num_slots: B.
    """
    rows = np.asarray([rung.capacity / num_slots for rung in ladder], np.float64)
    computing = sizes.token_flops * rows / _matrix_rate(hardware, sizes)
    reading = sizes.token_bytes / _bandwidth(hardware)
    return _together(hardware, reading, computing).astype(np.float32)


def _together(hardware: Hardware, reading: Any, computing: Any) -> np.ndarray:
    """Seconds of both."""
    return np.maximum(reading, computing) if hardware.overlaps else np.add(reading, computing)


def _bandwidth(hardware: Hardware) -> float:
    return hardware.bytes_per_second * BANDWIDTH_SHARE


def _matrix_rate(hardware: Hardware, sizes: Sizes) -> float:
    return hardware.rate(sizes.itemsize) * COMPUTE_SHARE
