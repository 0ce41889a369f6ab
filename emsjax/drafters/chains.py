"""Turns drafters of token trees into drafters of chains."""

import dataclasses

from emsjax.drafters.at_once import AtOnce
from emsjax.drafters.combined import Combined
from emsjax.drafters.eagle import Eagle
from emsjax.drafters.prompt_lookup import PromptLookup
from emsjax.drafters.recurrent import Recurrent
from emsjax.engine.drafter import Drafter


def as_chains(drafter: Drafter) -> Drafter:
    """Returns the drafter with one guess for each place, or the drafter itself if it has that."""
    if isinstance(drafter, Combined):
        return dataclasses.replace(
            drafter, lookup=as_chains(drafter.lookup), model=as_chains(drafter.model), tree=False
        )
    if isinstance(drafter, PromptLookup):
        return dataclasses.replace(drafter, matches=1)
    if isinstance(drafter, Recurrent | Eagle | AtOnce):
        return dataclasses.replace(drafter, beam_rows=1)
    return drafter
