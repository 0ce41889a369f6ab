"""Computes rotary frequencies from Hugging Face configurations, with the published scalings.

The computation is in float32, as in training.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from emsjax.errors import UserError
from emsjax.models.config import Rope

Settings = Mapping[str, Any]


def _base(settings: Settings, head_dim: int) -> np.ndarray:
    """Returns the unscaled frequencies theta^(-2i/H), float32[H / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (1.0 / np.float32(settings["rope_theta"]) ** exponents).astype(np.float32)


def _default(settings: Settings, head_dim: int, _max_positions: int) -> tuple[np.ndarray, float]:
    return _base(settings, head_dim), 1.0


def _linear(settings: Settings, head_dim: int, _max_positions: int) -> tuple[np.ndarray, float]:
    return _base(settings, head_dim) / np.float32(settings["factor"]), 1.0


def _llama3(settings: Settings, head_dim: int, _max_positions: int) -> tuple[np.ndarray, float]:
    """Llama 3.1: divides low frequencies by `factor`, keeps high ones and blends in between."""
    base = _base(settings, head_dim)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] * base / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return base * keep + base / settings["factor"] * (1 - keep), 1.0


def _yarn(settings: Settings, head_dim: int, max_positions: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): section 3.2, and equation 22 for the factor on the scores."""
    if settings.get("mscale") or settings.get("mscale_all_dim"):
        raise UserError("rope scaling 'yarn' with mscale is not supported; use a model without it")
    base, theta = _base(settings, head_dim), settings["rope_theta"]
    trained = settings.get("original_max_position_embeddings") or max_positions
    factor = settings.get("factor") or max_positions / trained

    def lane_of(turns: float) -> float:
        """Returns the (fractional) pair of lanes with `turns` rotations over the trained length."""
        return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = lane_of(settings.get("beta_fast") or 32)
    high = lane_of(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    attention_factor = settings.get("attention_factor") or 0.1 * math.log(max(factor, 1)) + 1
    return base / factor * ramp + base * (1 - ramp), attention_factor


# By `rope_type`. Each takes settings, H and the most positions that the model supports, and returns
# frequencies [H / 2] and the attention factor.
SCALINGS: Mapping[str, Callable[[Settings, int, int], tuple[np.ndarray, float]]] = MappingProxyType(
    {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
)


def rope_from_config(config: Mapping[str, Any], head_dim: int) -> Rope:
    """Returns the rotary embedding of a Hugging Face configuration.

    Args:
      config: the configuration, with `rope_parameters` or with `rope_theta` and `rope_scaling`.
      head_dim: H.

    Raises:
      UserError: the type of scaling is not in `SCALINGS`.
    """
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    settings.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    # Older configurations call it "type".
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in SCALINGS:
        raise UserError(
            f"rope scaling {kind!r} is not supported; use a model with one of {', '.join(SCALINGS)}"
        )
    frequencies, factor = SCALINGS[kind](settings, head_dim, config["max_position_embeddings"])
    return Rope(tuple(float(f) for f in frequencies.astype(np.float32)), factor)
