"""The ways to use several devices: replicas of a model, each shared by some of the devices.

They are compared by arithmetic, as in `estimate`, because each would take minutes to compile.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from emsjax.models.division import possible_shares
from emsjax.plan.estimate import estimate, published_bytes
from emsjax.plan.memory import Memory, largest_batch
from emsjax.plan.setting import Setting
from emsjax.plan.speedup import expected_speedup, plain_seconds


class Split(NamedTuple):
    """One way to use several devices.

    Attributes:
      setting: of one replica, with its part of the samples.
      samples: of all replicas.
      memory: of one device.
      largest: the most samples of all replicas that fit; 0 if not even one a replica does.
      plain_seconds: of a plain step.
      plain_rate: tokens per second of all replicas, without drafts.
      planned_rate: the same with the drafts that the planner verifies.
    """

    setting: Setting
    samples: int
    memory: Memory
    largest: int
    plain_seconds: float
    plain_rate: float
    planned_rate: float

    @property
    def fits(self) -> bool:
        """Whether all samples fit."""
        return self.memory.total <= published_bytes(self.setting)


def splits(alone: Setting, number: int) -> tuple[Split, ...]:
    """Returns the ways to use devices, the one with most replicas first.

    Args:
      alone: one device with all samples.
      number: how many devices there are.
    """
    shares = [each for each in possible_shares(alone.config) if number % each == 0]
    return tuple(_split(alone, number // shards, shards) for shards in shares)


def best_first(found: Sequence[Split]) -> list[Split]:
    """Returns splits by their tokens per second, those that do not fit last.

    Of these, the one that holds most samples is the first.
    """
    fitting = sorted((each for each in found if each.fits), key=lambda each: -each.planned_rate)
    others = [each for each in found if not each.fits]
    return fitting + sorted(others, key=lambda each: (-each.largest, -each.setting.shards))


def _split(alone: Setting, replicas: int, shards: int) -> Split:
    samples = alone.num_slots
    each = -(-samples // replicas)
    setting = replace(alone, replicas=replicas, shards=shards, num_slots=each)
    program = estimate(setting)
    usable = published_bytes(setting)
    largest = largest_batch(program.memory, usable, lambda b: estimate(setting.at(b)).memory)
    shape = {"num_slots": each, "context": setting.attended}
    seconds = plain_seconds(program.costs, program.ladder, **shape)
    speedup = expected_speedup(
        program.costs,
        program.ladder,
        **shape,
        acceptance=setting.acceptance,
        draft_length=setting.draft_length,
    )
    return Split(
        setting,
        samples,
        program.memory,
        0 if largest is None else largest.num_slots * replicas,
        seconds,
        samples / seconds,
        samples / seconds * speedup.planned,
    )
