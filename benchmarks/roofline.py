"""What a step of a model would cost on hardware that is not here, from bytes and operations.

A step reads all weights and the cached tokens, and multiplies every row with every weight: it takes
the longer of the two, plus what attention reads. Shares of the peak that are reached are assumed,
not measured: read the result as an estimate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emsjax.ladder import Rung
from emsjax.worth import StepCosts

BANDWIDTH_SHARE, COMPUTE_SHARE = 0.8, 0.6


class Hardware(NamedTuple):
    """One accelerator, as its maker gives it.

    Attributes:
      bytes_per_second: of its memory.
      flops: dense bfloat16 operations a second.
    """

    bytes_per_second: float
    flops: float


class Shape(NamedTuple):
    """A model in bfloat16.

    Attributes:
      parameters: all of them.
      cached_bytes: K and V of one token, all layers.
    """

    parameters: float
    cached_bytes: float


HARDWARE = {"v5e": Hardware(819e9, 197e12), "h100": Hardware(3350e9, 989e12)}
# Layers x 2 x key/value heads x head width x 2 bytes.
SHAPES = {
    "opt-6.7b": Shape(6.7e9, 32 * 2 * 32 * 128 * 2),
    "llama-3-8b": Shape(8.0e9, 32 * 2 * 8 * 128 * 2),
}


def estimated_costs(shape: Shape, hardware: Hardware, ladder: Sequence[Rung]) -> StepCosts:
    """Seconds of a step on every rung; a drafter that looks up costs nothing."""
    speed = hardware.bytes_per_second * BANDWIDTH_SHARE
    rows = np.asarray([rung.capacity for rung in ladder], np.float64)
    computing = 2 * shape.parameters * rows / (hardware.flops * COMPUTE_SHARE)
    reading = 2 * shape.parameters / speed
    cached = np.full(len(rows), shape.cached_bytes / speed, np.float32)
    return StepCosts(np.maximum(computing, reading).astype(np.float32), cached, np.float32(0))
