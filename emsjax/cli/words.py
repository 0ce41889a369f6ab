"""Small words for people."""


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 token", "1,200 tokens"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
