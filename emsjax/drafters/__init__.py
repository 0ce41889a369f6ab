"""Drafters: guess the next tokens of every slot; the target verifies them."""

from emsjax.drafters.base import Draft, Drafter
from emsjax.drafters.none import NoDrafter
from emsjax.drafters.prompt_lookup import PromptLookup
from emsjax.errors import UserError
from emsjax.names import DRAFTERS

__all__ = ["DRAFTERS", "Draft", "Drafter", "NoDrafter", "PromptLookup", "make_drafter"]


def make_drafter(
    name: str, draft_length: int = 7, max_ngram: int = 3, min_ngram: int = 2
) -> Drafter:
    """The drafter called `name`; the numbers are for prompt lookup.

    Raises:
      UserError: there is no such drafter, or its options are wrong.
    """
    if name == "none":
        return NoDrafter()
    if name == "prompt-lookup":
        return PromptLookup(draft_length, max_ngram, min_ngram)
    raise UserError(f"drafter {name!r} is unknown; there is {', '.join(DRAFTERS)}")
