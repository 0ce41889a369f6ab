"""Builds a drafter from options; contradictory options are refused, never ignored."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emsjax.drafters import (
    DFlash,
    DraftModel,
    Eagle,
    HiddenTransfer,
    Jakiro,
    Medusa,
    NoDrafter,
    OwnLayers,
    PromptLookup,
    Recurrent,
    SelfWindow,
)
from emsjax.drafters.combined import Combined
from emsjax.drafters.prompt_lookup import MOST_MATCHES
from emsjax.engine.drafter import Drafter
from emsjax.engine.ladder import default_draft_length, narrowest_rows
from emsjax.engine.policy import EMS, POLICIES
from emsjax.errors import UserError, about, check_whole, short
from emsjax.limits import (
    DRAFT_LENGTH,
    DRAFTERS,
    MAX_DRAFT_LENGTH,
    METHODS,
    NAMED_DRAFTS,
)
from emsjax.loading.drafter import load_drafter, shipped_draft
from emsjax.loading.head_load import PublishedHead
from emsjax.loading.head_probe import settle
from emsjax.loading.load import LoadedModel, find_model, locate
from emsjax.loading.opened import OpenedModel
from emsjax.pallas_kernels.backends import target_platform

# The options that each drafter takes.
_TAKES = {
    "none": (),
    "prompt-lookup": ("draft_length", "max_ngram", "min_ngram"),
    "draft-model": ("draft_length", "draft_model", "draft_quantize"),
    "combined": ("draft_length", "max_ngram", "min_ngram", "draft_model", "draft_quantize"),
}

# A pass of a draft model takes little longer for this many rows than for one, so drafts may branch.
_FREE_ROWS, _FREE_ROWS_OF_OTHERS = {"cpu": 8}, 128

_KINDS = {
    NoDrafter: "none",
    PromptLookup: "prompt-lookup",
    DraftModel: "draft-model",
    Recurrent: "draft-model",
    OwnLayers: "draft-model",
    HiddenTransfer: "draft-model",
    Jakiro: "draft-model",
    Eagle: "draft-model",
    SelfWindow: "draft-model",
    DFlash: "draft-model",
    Medusa: "draft-model",
    Combined: "combined",
}


@dataclass(frozen=True)
class Drafting:
    """Checked options for drafting.

    Attributes:
      name: one of `DRAFTERS`, or a drafter object; None to choose one for the target.
      given: the options in `_TAKES` that were given.
    """

    name: str | Drafter | None
    given: Mapping[str, Any]

    def lookup(self, draft_length: int = DRAFT_LENGTH) -> PromptLookup:
        """Makes prompt lookup with these options, and with this length if none is given."""
        takes = _TAKES["prompt-lookup"]
        given = {name: self.given[name] for name in takes if name in self.given}
        return PromptLookup(**{"draft_length": draft_length} | given, matches=MOST_MATCHES)


def check_drafting(
    method: str, drafter: str | Drafter | None, options: Mapping[str, Any]
) -> Drafting:
    """Checks options against each other before anything is loaded.

    Args:
      method: one of `METHODS`.
      drafter: one of `DRAFTERS`, a drafter object, or None to choose one for the target.
      options: the options in `_TAKES` by name; None for those that were left out.

    Raises:
      UserError: a name is unknown, or an option is out of range or not for this drafter.
    """
    if method not in METHODS:
        raise UserError(f"method {short(method)} is unknown; choose from {', '.join(METHODS)}")
    if isinstance(drafter, str) and drafter not in DRAFTERS:
        raise UserError(f"drafter {drafter!r} is unknown; choose from {', '.join(DRAFTERS)}")
    if drafter is not None and not isinstance(drafter, str) and not hasattr(drafter, "propose"):
        raise UserError(
            f"drafter is {short(drafter)}; give one of {', '.join(DRAFTERS)}, or an object that "
            "implements Drafter"
        )
    if method == "none" and drafter not in (None, "none"):
        raise UserError("method 'none' drafts nothing; leave out drafter")
    given = {option: value for option, value in options.items() if value is not None}
    name = "none" if method == "none" else drafter
    if name is None and not given.keys().isdisjoint(("draft_model", "draft_quantize")):
        name = "combined"
    for option, value in given.items():
        if name is not None and name not in takers(option):
            raise UserError(
                f"{option} is for the drafter {_either(takers(option))}; leave out {option}"
            )
        if option in _TAKES["prompt-lookup"]:
            check_whole(option, value, 1, MAX_DRAFT_LENGTH)
    drafting = Drafting(name, given)
    drafting.lookup()  # raises if the sizes contradict each other
    return drafting


def find_draft(drafting: Drafting) -> None:
    """Looks for the draft model, and downloads it if need be, before the target is loaded.

    Raises:
      UserError: there is no such draft model.
    """
    draft = drafting.given.get("draft_model")
    if draft is not None and draft not in NAMED_DRAFTS:
        with about("draft_model", str(draft)):
            locate(draft)


def draft_model_of(drafting: Drafting, drafter: Drafter) -> OpenedModel | None:
    """Returns the files of a drafter's draft model; None if it has none."""
    model = drafter.model if isinstance(drafter, Combined) else drafter
    draft = drafting.given.get("draft_model")
    return find_model(draft) if isinstance(model, DraftModel) and draft is not None else None


def drafter_name(drafter: Drafter) -> str:
    """Returns one of `DRAFTERS`, or the class name of a drafter object of the caller's."""
    return _KINDS.get(type(drafter), type(drafter).__name__)


def takers(option: str) -> list[str]:
    """Returns the drafters that take an option."""
    return [drafter for drafter, takes in _TAKES.items() if option in takes]


def default_length(method: str, exact: bool, num_slots: int) -> int:
    """Returns k for this platform and B slots; `exact` and the methods that pad draft chains."""
    trees = POLICIES[method] == EMS and not exact
    return default_draft_length(target_platform(), num_slots) if trees else DRAFT_LENGTH


def _either(names: list[str]) -> str:
    return " or ".join(repr(name) for name in names)


def build_drafter(
    drafting: Drafting, target: LoadedModel, dtype: str, draft_length: int = DRAFT_LENGTH
) -> Drafter:
    """Builds the drafter for a target.

    Args:
      drafting: the checked options. Without a drafter's name they select "combined" if the target
        comes with a draft model, else "prompt-lookup".
      target: the model to draft for.
      dtype: the type of the draft model's weights, see `LLM`.
      draft_length: k, unless it is among the options.

    Raises:
      UserError: a draft model is needed but missing, cannot be loaded, or does not fit the target.
    """
    if drafting.name is not None and not isinstance(drafting.name, str):
        return drafting.name
    draft = drafting.given.get("draft_model") or shipped_draft(target)
    name = drafting.name or ("prompt-lookup" if draft is None else "combined")
    if name == "none":
        return NoDrafter()
    lookup = drafting.lookup(draft_length)
    if name == "prompt-lookup":
        return lookup
    if draft is None:
        raise UserError(
            f"the drafter {name!r} needs a draft model for {target.name}; name one with "
            "draft_model, or train one with `python -m emsjax.train`"
        )
    length = drafting.given.get("draft_length", draft_length)
    narrowest = narrowest_rows(target_platform())
    quantize = drafting.given.get("draft_quantize")
    model = load_drafter(draft, target, length, dtype=dtype, quantize=quantize, narrowest=narrowest)
    # A Jakiro head is an Eagle, but was trained here and says itself what it reads.
    if isinstance(model, PublishedHead) and not isinstance(model, Jakiro):
        model = settle(model, target)
    if isinstance(model, Recurrent | HiddenTransfer | PublishedHead):
        rows = _FREE_ROWS.get(target_platform(), _FREE_ROWS_OF_OTHERS)
        model = dataclasses.replace(model, beam_rows=rows)
    return model if name == "draft-model" else Combined(lookup, model, tree=True)
