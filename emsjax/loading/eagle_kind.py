"""Tells published heads from whole models, by their tensors and their configuration."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from emsjax.errors import UserError

EAGLE_1, EAGLE_3 = "EAGLE-1", "EAGLE-3"
# Optional prefixes of tensor names, and the name of the only layer in EAGLE's own checkpoints.
PREFIXES = ("model.",)
MIDLAYER = "midlayer"

# Heads that are refused by name, each with a tensor that only they have.
_OTHERS: Mapping[str, str] = {
    "a Jakiro head": r"layers\.0\.mlp_moe\..*",
    "a P-EAGLE head": r"mask_hidden",
    "a DFlash head": r"hidden_norm\.weight",
    "a Medusa head": r"(medusa_heads\.)?(\d+\.0\.linear|blocks\.\d+\.layers\.\d+)\.weight",
    "an MTP module": r"(.*\.)?eh_proj\.weight",
    "an EAGLE-1 head of speculators": r"fusion_fc\.weight",
    "a HASS head with norms of its own": r"(embedding|hidden_states)_layernorm\.weight",
}
_MEDUSA_FILE = "medusa_lm_head.pt"
_SUPPORTED = "use an EAGLE-1, EAGLE-2 or EAGLE-3 head, or a smaller model"


def kind_of(names: Iterable[str], config: Mapping[str, Any], origin: str) -> str | None:
    """Returns the kind of a head, or None for a checkpoint of something else.

    Args:
      names: names of the checkpoint's tensors.
      config: its `config.json`.
      origin: its name in messages.

    Raises:
      UserError: it is a head of a kind that is not supported.
    """
    bare = {_bare(name) for name in names}
    for kind, pattern in _OTHERS.items():
        if any(re.fullmatch(pattern, name) for name in bare):
            raise UserError(f"{origin} is {kind}, which is not supported; {_SUPPORTED}")
    if config.get("speculators_model_type") not in (None, "eagle3"):
        kind = str(config["speculators_model_type"])[:40]
        raise UserError(f"{origin} is a {kind} head, which is not supported; {_SUPPORTED}")
    third = any(name.startswith(f"{MIDLAYER}.") for name in bare)
    if third or "layers.0.hidden_norm.weight" in bare or "speculators_model_type" in config:
        return EAGLE_3
    return EAGLE_1 if "fc.weight" in bare else None


def check_no_medusa(directory: Path) -> None:
    """Checks that a directory without other weights holds no Medusa head.

    Raises:
      UserError: it does.
    """
    if (directory / _MEDUSA_FILE).is_file():
        raise UserError(f"{directory} is a Medusa head, which is not supported; {_SUPPORTED}")


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
