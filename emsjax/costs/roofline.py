"""Estimates the cost of a step on any hardware, from the bytes and operations it needs.

A step reads all weights (of experts those that its rows choose) and every slot's cached tokens, and
multiplies every row with every weight (of experts those that the row chooses). If the hardware
reads and multiplies at the same time, the longer of the two counts; if in turn, their sum; most
processors are in between. Attention is added. The shares of the published rates that are reached
are assumptions.

Devices that share a model add up their rows in a ring: each sends its part of the sum to the next
device, N - 1 times until every part is a sum and N - 1 times until all have all sums. Nothing else
is done meanwhile. A draft model that is divided does the same in each of its passes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from emsjax.costs.hardware import Hardware
from emsjax.engine.ladder import Rung
from emsjax.engine.sizes import Exchange, Sizes
from emsjax.engine.step_costs import Passes, StepCosts

BANDWIDTH_SHARE, COMPUTE_SHARE = 0.8, 0.6
# Passes of a row for each slot, as far as their cost goes.
ONE_TOKEN = Passes(depth=1)


def attended(windows: Sequence[int], context: float) -> float:
    """Returns how many cached tokens of a sample a layer reads, on average over the layers.

    Args:
      windows: as in `DecoderConfig`; 0 for a layer without a window.
      context: cached tokens of the sample.
    """
    if not windows:
        return context
    return sum(min(context, window or context) for window in windows) / len(windows)


class Bounds(NamedTuple):
    """Seconds of a step on each rung with an empty cache.

    Attributes:
      reading: float64[R], for reading all weights.
      computing: float64[R], for all products with them.
    """

    reading: np.ndarray
    computing: np.ndarray


def bounds(
    sizes: Sizes, hardware: Hardware, ladder: Sequence[Rung], *, num_slots: int, draft_length: int
) -> Bounds:
    """Computes the least seconds of each rung.

    Args:
      sizes: of the model.
      hardware: the device.
      ladder: rungs.
      num_slots: B.
      draft_length: k.
    """
    rows = np.asarray([rung.capacity for rung in ladder], np.float64)
    # A token is chosen after at most so many rows.
    emitting = num_slots * (draft_length + 1)
    operations = sizes.row_flops * rows + sizes.logit_flops * np.minimum(rows, emitting)
    reading = weights_read(sizes, ladder, num_slots) / _bandwidth(hardware)
    return Bounds(reading, operations / _matrix_rate(hardware, sizes))


def estimated_costs(
    sizes: Sizes,
    hardware: Hardware,
    ladder: Sequence[Rung],
    *,
    num_slots: int,
    draft_length: int,
    drafter_bytes: int = 0,
    passes: Passes = ONE_TOKEN,
) -> StepCosts:
    """Estimates the costs of steps on every rung.

    Args:
      sizes: of the model.
      hardware: the device.
      ladder: rungs.
      num_slots: B.
      draft_length: k.
      drafter_bytes: bytes of weights that a pass of drafting reads; 0 for drafters that look drafts
        up.
      passes: in which drafts are made.
    """
    least = bounds(sizes, hardware, ladder, num_slots=num_slots, draft_length=draft_length)
    seconds = _together(hardware, *least) + exchange_seconds(sizes, hardware, ladder)
    flops = 2 * passes.observing // sizes.itemsize
    seconds += product_seconds(passes.observing, flops, sizes, hardware, ladder)
    # In a draft model, too, every row is multiplied with every weight.
    rows = num_slots * passes.rows
    computing = 2 * rows * drafter_bytes / sizes.itemsize / _matrix_rate(hardware, sizes)
    draft = _together(hardware, drafter_bytes / _bandwidth(hardware), computing)
    cached = cached_costs(sizes, hardware, ladder, num_slots)
    draft = draft + cached[0] * num_slots * passes.tokens
    draft = draft + _exchanging(passes.exchanges, sizes.devices, hardware, rows)
    return StepCosts(seconds.astype(np.float32), cached, np.float32(draft))


def cached_costs(
    sizes: Sizes, hardware: Hardware, ladder: Sequence[Rung], num_slots: int
) -> np.ndarray:
    """Estimates the seconds that each cached token adds to a step.

    The token is read once and multiplied with every row of its slot.

    Args:
      sizes: of the model.
      hardware: the device.
      ladder: rungs.
      num_slots: B; the rows of a rung are taken to be shared evenly.

    Returns:
      float32[R].
    """
    rows = np.asarray([rung.capacity / num_slots for rung in ladder], np.float64)
    computing = sizes.token_flops * rows / _matrix_rate(hardware, sizes)
    reading = sizes.token_bytes / _bandwidth(hardware)
    return _together(hardware, reading, computing).astype(np.float32)


def weights_read(sizes: Sizes, ladder: Sequence[Rung], num_slots: int) -> np.ndarray:
    """Returns the bytes of weights that a step on each rung reads, float64[R].

    The rung is as full as B slots can make it; its unused rows choose no experts.
    """
    rows = [min(rung.capacity, num_slots * rung.max_q_len) for rung in ladder]
    return np.asarray(sizes.step_bytes(np.asarray(rows, np.float64)))


def expert_seconds(
    sizes: Sizes, hardware: Hardware, ladder: Sequence[Rung], num_slots: int
) -> np.ndarray:
    """Returns the seconds in which each rung reads the experts of its rows, float64[R]."""
    return (weights_read(sizes, ladder, num_slots) - sizes.read_bytes) / _bandwidth(hardware)


def product_seconds(
    nbytes: int, row_flops: int, sizes: Sizes, hardware: Hardware, ladder: Sequence[Rung]
) -> np.ndarray:
    """Returns the seconds of products with some of the weights on each rung, float64[R].

    Args:
      nbytes: bytes of these weights.
      row_flops: operations for one row with them.
      sizes: of the model.
      hardware: the device.
      ladder: rungs.
    """
    rows = np.asarray([rung.capacity for rung in ladder], np.float64)
    computing = row_flops * rows / _matrix_rate(hardware, sizes)
    return _together(hardware, nbytes / _bandwidth(hardware), computing)


def exchange_seconds(sizes: Sizes, hardware: Hardware, ladder: Sequence[Rung]) -> np.ndarray:
    """Returns the seconds in which devices exchange rows in a step on each rung, float64[R].

    They are 0 for one device, and for devices whose link is not known.
    """
    rows = np.asarray([rung.capacity for rung in ladder], np.float64)
    return _exchanging(sizes.exchanges, sizes.devices, hardware, rows)


def _exchanging(
    exchanges: Sequence[Exchange], devices: int, hardware: Hardware, rows: Any
) -> np.ndarray:
    """Returns the seconds in which devices exchange so many rows, a number or an array."""
    seconds, link, others = np.zeros_like(rows, np.float64), hardware.link, devices - 1
    if link is None:
        return seconds
    for times, row_bytes in exchanges:
        sent = 2 * others / devices * rows * row_bytes
        waiting = link.start_seconds + 2 * others * link.hop_seconds
        seconds += times * (waiting + sent / (link.bytes_per_second * BANDWIDTH_SHARE))
    return seconds


def _together(hardware: Hardware, reading: Any, computing: Any) -> np.ndarray:
    """Seconds of reading and computing, as far as they do not happen at the same time."""
    return np.maximum(reading, np.add(hardware.exposed * reading, computing))


def _bandwidth(hardware: Hardware) -> float:
    return hardware.bytes_per_second * BANDWIDTH_SHARE


def _matrix_rate(hardware: Hardware, sizes: Sizes) -> float:
    return hardware.rate(sizes.itemsize) * COMPUTE_SHARE
