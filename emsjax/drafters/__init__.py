"""Drafters guess the next tokens of every slot, and the target verifies them."""

from emsjax.drafters.combined import Combined
from emsjax.drafters.dflash import DFlash
from emsjax.drafters.draft_model import DraftModel
from emsjax.drafters.eagle import Eagle
from emsjax.drafters.hidden_transfer import HiddenTransfer
from emsjax.drafters.jakiro import Jakiro
from emsjax.drafters.medusa import Medusa
from emsjax.drafters.none import NoDrafter
from emsjax.drafters.own_layers import OwnLayers
from emsjax.drafters.prompt_lookup import PromptLookup
from emsjax.drafters.recurrent import Recurrent
from emsjax.drafters.self_window import SelfWindow
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Drafter

__all__ = [
    "Combined",
    "DFlash",
    "Draft",
    "DraftModel",
    "Drafter",
    "Eagle",
    "HiddenTransfer",
    "Jakiro",
    "Medusa",
    "NoDrafter",
    "OwnLayers",
    "PromptLookup",
    "Recurrent",
    "SelfWindow",
]
