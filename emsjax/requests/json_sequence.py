"""Regular expressions of parts that come in a given order, some of which may be missing."""

# The most characters of an expression.
LONGEST = 300_000


def in_order(pairs: list[tuple[str, bool]], comma: str) -> str:
    """Returns an expression of parts in their order.

    Args:
      pairs: each part, and whether it must be there.
      comma: the expression of what stands between two parts.
    """
    # What may come after the parts from each one on: after others, and as the first ones.
    after, first = "", ""
    for part, needed in reversed(pairs):
        if needed:
            first, after = f"{part}{after}", f"{comma}{part}{after}"
        else:
            first, after = f"(?:{part}{after}|{first})", f"(?:{comma}{part})?{after}"
        if len(first) > LONGEST:
            break  # refused
    return first


def some_of(parts: list[str], least: int, most: int, comma: str) -> str:
    """Returns an expression of `least` to `most` of the parts, each at most once, in their order.

    Args:
      parts: at least `least` of them.
      least: from 0.
      most: from `least`.
      comma: the expression of what stands between two parts.
    """
    made: dict[tuple[int, int, int], str] = {}

    def after(start: int, low: int, high: int) -> str:
        """Returns what follows another part, of the parts from `start` on."""
        left = len(parts) - start
        low, high = max(low, 0), min(high, left)
        key = start, low, high
        if key not in made:
            made[key] = following(start, low, high, left)
        return made[key]

    def following(start: int, low: int, high: int, left: int) -> str:
        if not high:
            return ""
        part = f"{comma}{parts[start]}"
        if low == left:
            return f"{part}{after(start + 1, low - 1, high - 1)}"
        if not low and high == left:
            return f"(?:{part})?{after(start + 1, 0, high - 1)}"
        with_it, without = after(start + 1, low - 1, high - 1), after(start + 1, low, high)
        return _bounded(f"(?:{part}{with_it}|{without})")

    first = [
        _bounded(f"{parts[start]}{after(start + 1, least - 1, most - 1)}")
        for start in range(len(parts) - max(least, 1) + 1)
    ]
    return f"(?:{'|'.join(first)})" if least else f"(?:{'|'.join(first)})?"


class TooLongError(Exception):
    """An expression would be longer than `LONGEST`."""


def _bounded(expression: str) -> str:
    if len(expression) > LONGEST:
        raise TooLongError
    return expression
