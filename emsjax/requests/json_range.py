"""Regular expressions of numbers in a range."""

from decimal import Decimal
from typing import NamedTuple


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


class Bound(NamedTuple):
    """One end of a range.

    Attributes:
      value: the number.
      open: whether the number itself is outside.
    """

    value: Decimal
    open: bool = False


def numbers(low: Bound | None, high: Bound | None) -> str | None:
    """Returns an expression of the decimal numbers in a range, written without an exponent.

    Args:
      low: the lower end; None for no bound.
      high: the upper end; None for no bound.

    Returns:
      The expression; None if there is no such number.
    """
    zero = Bound(Decimal(0))
    parts = []
    if low is None or low.value < 0:
        # As with whole numbers. Zero has no sign here.
        least = (
            zero._replace(open=True) if high is None else _above(_minus(high), open_at_zero=True)
        )
        most = None if low is None else _minus(low)
        parts += [f"-(?:{part})" for part in _from_zero(least, most)]
    if high is None or high.value >= 0:
        parts += _from_zero(zero if low is None else _above(low), high)
    return "|".join(parts) if parts else None


def _minus(bound: Bound) -> Bound:
    return Bound(-bound.value, bound.open)


def _above(bound: Bound, open_at_zero: bool = False) -> Bound:
    """Returns the bound, or that of the numbers from 0 on if it is below."""
    if bound.value < 0 or (open_at_zero and not bound.value):
        return Bound(Decimal(0), open_at_zero)
    return bound


def _from_zero(low: Bound, high: Bound | None) -> list[str]:
    """Returns expressions of the numbers between two, of which neither is below 0."""
    first, fraction = _split(low.value)
    least = _End(fraction, low.open)
    if high is None:
        return [*_with(first, least, None), rf"(?:{integers(first + 1, None)})(?:\.[0-9]+)?"]
    last, fraction = _split(high.value)
    most = _End(fraction, high.open)
    if first >= last:
        return _with(first, least, most) if first == last else []
    between = [rf"(?:{integers(first + 1, last - 1)})(?:\.[0-9]+)?"] if last - first > 1 else []
    return [*_with(first, least, None), *between, *_with(last, None, most)]


class _End(NamedTuple):
    """One end of a range of fractions.

    Attributes:
      digits: the digits after the point, or those of them that are still to come; zeros follow.
      open: whether the end itself is outside.
    """

    digits: str
    open: bool

    def after(self) -> "_End":
        return _End(self.digits[1:], self.open)

    @property
    def next(self) -> str:
        return self.digits[:1] or "0"


def _split(value: Decimal) -> tuple[int, str]:
    """Returns the whole part of a number from 0 on, and the digits after its point."""
    whole, _, fraction = f"{value:f}".partition(".")
    return int(whole), fraction.rstrip("0")


def _with(whole: int, low: _End | None, high: _End | None) -> list[str]:
    """Returns the expression of a whole part with the fractions in a range, if there are any."""
    tail = _digits(low, high)
    if _is_in(low, high):
        return [f"{whole}" if tail is None else rf"{whole}(?:\.(?:{tail}))?"]
    return [] if tail is None else [rf"{whole}\.(?:{tail})"]


def _is_in(low: _End | None, high: _End | None) -> bool:
    """Whether nothing but zeros may follow."""
    above = low is None or not (low.digits or low.open)
    return above and (high is None or bool(high.digits) or not high.open)


def _digits(low: _End | None, high: _End | None) -> str | None:
    """Returns the expression of one digit or more in a range; None if there are none."""
    if low is not None and not (low.digits or low.open):
        low = None
    if low is None and high is None:
        return "[0-9]+"
    if low is not None and not low.digits and high is None:
        return "0*[1-9][0-9]*"
    if high is not None and not high.digits:
        return "0+" if _is_in(low, high) else None
    parts = []
    for digit in "0123456789":
        if (low is None or digit >= low.next) and (high is None or digit <= high.next):
            below = low.after() if low is not None and digit == low.next else None
            above = high.after() if high is not None and digit == high.next else None
            more = _digits(below, above)
            if _is_in(below, above):
                parts.append(digit if more is None else f"{digit}(?:{more})?")
            elif more is not None:
                parts.append(f"{digit}(?:{more})")
    return "|".join(parts) if parts else None
