"""Lists tensors of many layers or experts in few words."""

import re
from collections.abc import Sequence

_MOST = 6  # layers or experts to list one by one


def folded(names: Sequence[str]) -> list[str]:
    """Merges names that differ only in the layer: `model.layers.{0,1,2}.norm.weight`.

    Names that differ only in the expert, the second number, are merged before.
    """
    return _folded_at(0, _folded_at(1, list(dict.fromkeys(names))))


def _folded_at(place: int, names: Sequence[str]) -> list[str]:
    """Merges names that differ only in their number at this place, counted from 0."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        numbers = list(re.finditer(r"(?<=\.)\d+(?=\.)", name))
        start, end = numbers[place].span() if place < len(numbers) else (len(name), len(name))
        groups.setdefault((name[:start], name[end:]), []).append(name[start:end])
    return [
        before + ("{" + _numbers(each) + "}" if len(each) > 1 else each[0]) + after
        for (before, after), each in groups.items()
    ]


def _numbers(numbers: Sequence[str]) -> str:
    """Lists numbers, only the first and the last of many."""
    return ",".join(numbers if len(numbers) <= _MOST else [*numbers[:2], "...", numbers[-1]])
