"""Wording of messages."""


def count(number: int, noun: str) -> str:
    """Formats a number with its noun: "1 token", "1,200 tokens"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
