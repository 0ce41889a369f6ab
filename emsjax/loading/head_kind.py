"""Tells published heads from whole models, by their tensors and their configuration."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from emsjax.errors import UserError

EAGLE_1, EAGLE_3, DFLASH, MEDUSA, MTP = "EAGLE-1", "EAGLE-3", "DFlash", "Medusa", "MTP"
# Optional prefixes of tensor names, and the name of the only layer in EAGLE's own checkpoints.
PREFIXES = ("model.", "medusa_heads.")
MIDLAYER = "midlayer"

# Heads that are refused by name, each with a tensor that only they have.
_REFUSED: Mapping[str, str] = {
    "a Jakiro head": r"layers\.0\.mlp_moe\..*",
    "a P-EAGLE head": r"mask_hidden",
    "a DFlash-2 head": r"candidate_selector\..*",
    "an MTP module of another form than MiMo's": r"(.*\.)?eh_proj\.weight|mtp\.fc\.weight",
    "an EAGLE-1 head of speculators": r"fusion_fc\.weight",
    "a HASS head with norms of its own": r"(embedding|hidden_states)_layernorm\.weight",
}
# Heads that are known by a tensor, the first that fits.
_KNOWN: Mapping[str, str] = {
    MTP: r"mtp_layers\.\d+\..*",
    MEDUSA: r"(\d+\.0\.linear|blocks\.\d+\.layers\.\d+)\.weight",
    DFLASH: r"hidden_norm\.weight",
    EAGLE_3: rf"{MIDLAYER}\..*|layers\.0\.hidden_norm\.weight",
}
_SUPPORTED = "use an EAGLE, DFlash or Medusa head, MiMo's MTP module, or a smaller model"


def kind_of(names: Iterable[str], config: Mapping[str, Any], origin: str) -> str | None:
    """Returns the kind of a head, or None for a checkpoint of something else.

    Args:
      names: names of the checkpoint's tensors, without prefix.
      config: its `config.json`; empty if it has none.
      origin: its name in messages.

    Raises:
      UserError: it is a head of a kind that is not supported.
    """
    bare = frozenset(names)
    for kind, pattern in _REFUSED.items():
        if _has(bare, pattern):
            raise UserError(f"{origin} is {kind}, which is not supported; {_SUPPORTED}")
    if config.get("speculators_model_type") not in (None, "eagle3"):
        kind = str(config["speculators_model_type"])[:40]
        raise UserError(
            f"{origin} is a {kind} head of speculators, which is not supported; {_SUPPORTED}"
        )
    for kind, pattern in _KNOWN.items():
        if _has(bare, pattern):
            return kind
    if "speculators_model_type" in config:
        return EAGLE_3
    return EAGLE_1 if "fc.weight" in bare else None


def _has(names: frozenset[str], pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)
