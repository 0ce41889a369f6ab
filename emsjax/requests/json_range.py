"""Regular expressions of whole numbers in a range."""


def integers(low: int | None, high: int | None) -> str:
    """Returns an expression of the whole numbers from `low` to `high`, without leading zeros.

    Args:
      low: the least; None for no bound.
      high: the most, at least `low`; None for no bound.
    """
    parts = []
    if low is None or low < 0:
        # Numbers below 0 are those above it, with a sign and the bounds exchanged.
        most = None if low is None else -low
        least = 1 if high is None else max(1, -high)
        parts.append(f"-(?:{_positive(least, most)})")
    if (low is None or low <= 0) and (high is None or high >= 0):
        parts.append("0")
    if high is None or high > 0:
        parts.append(_positive(1 if low is None else max(1, low), high))
    return "|".join(parts)


def _positive(low: int, high: int | None) -> str:
    """Returns an expression of the numbers from `low`, at least 1, to `high`."""
    parts = []
    length = len(str(low))
    last = length if high is None else len(str(high))
    for digits in range(length, last + 1):
        least = low if digits == length else 10 ** (digits - 1)
        most = 10**digits - 1 if high is None or digits < last else high
        parts.append(_same_length(str(least), str(most)))
    if high is None:
        parts.append(f"[1-9][0-9]{{{length},}}")
    return "|".join(parts)


def _same_length(low: str, high: str) -> str:
    """Returns an expression of the numbers between two with as many digits."""
    if not low:
        return ""
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return f"[{low[0]}-{high[0]}]" + (f"[0-9]{{{rest}}}" if rest else "")
    if low[0] == high[0]:
        return f"{low[0]}(?:{_same_length(low[1:], high[1:])})"
    parts = [f"{low[0]}(?:{_same_length(low[1:], '9' * rest)})"]
    if int(high[0]) - int(low[0]) > 1:
        between = f"[{int(low[0]) + 1}-{int(high[0]) - 1}]"
        parts.append(f"{between}[0-9]{{{rest}}}")
    parts.append(f"{high[0]}(?:{_same_length('0' * rest, high[1:])})")
    return "|".join(parts)
