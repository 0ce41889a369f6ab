"""The search for the largest batch that fits, compared with trying every size."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from emsjax.plan.memory import Memory, largest_batch

MOST = 60


def memory_of(num_slots: int, per_slot: int, temporaries: list[int]) -> Memory:
    """Returns memory that is linear in the slots, apart from the temporaries."""
    cache, state = per_slot * num_slots, 2 * num_slots
    return Memory(num_slots, 1000, cache, state, temporaries[num_slots], compiled=True)


@given(
    first=st.integers(1, MOST),
    per_slot=st.integers(1, 200),
    growth=st.lists(st.sampled_from((0, 0, 0, 1, 50)), min_size=MOST, max_size=MOST),
    device=st.integers(500, 6000),
)
def test_search_equals_trying_every_size(first: int, per_slot: int, growth: list[int], device: int):
    # Batches larger than MOST never fit.
    temporaries = [0, *itertools.accumulate(growth), *[10**6] * 6000]
    measured = []

    def measure(num_slots: int) -> Memory:
        measured.append(num_slots)
        return memory_of(num_slots, per_slot, temporaries)

    found = largest_batch(memory_of(first, per_slot, temporaries), device, measure)
    sizes = [memory_of(n, per_slot, temporaries) for n in range(1, MOST + 1)]
    fitting = [memory for memory in sizes if memory.total <= device]
    assert found == (fitting[-1] if fitting else None)
    assert len(measured) == len(set(measured))


def test_search_measures_few_sizes():
    """If temporaries stay small, the first guess is checked and nothing else is measured."""
    measured = []

    def measure(num_slots: int) -> Memory:
        measured.append(num_slots)
        return memory_of(num_slots, 100, [40 + n // 10 for n in range(100)])

    found = largest_batch(measure(8), 3999, measure)
    assert found is not None
    assert found.num_slots == 28
    assert measured == [8, 29, 28]
