"""Computes rotary frequencies from Hugging Face configurations, with the published scalings.

The computation is in float32, as in training.
"""

import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from emsjax.errors import UserError
from emsjax.models.config import Rope

Settings = Mapping[str, Any]
# The types of layers in `layer_types`.
FULL, SLIDING = "full_attention", "sliding_attention"


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
    base, theta = _base(settings, head_dim), settings["rope_theta"]
    trained = settings.get("original_max_position_embeddings") or max_positions
    factor = settings.get("factor") or max_positions / trained

    def lane_of(turns: float) -> float:
        """Returns the (fractional) pair of lanes with `turns` rotations over the trained length."""
        return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (
        lane_of(default if settings.get(name) is None else settings[name])
        for name, default in (("beta_fast", 32), ("beta_slow", 1))
    )
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    attention_factor = settings.get("attention_factor") or _yarn_factor(settings, max(factor, 1))
    return base / factor * ramp + base * (1 - ramp), attention_factor


def _yarn_factor(settings: Settings, factor: float) -> float:
    """Equation 22, or the ratio of two such factors with a weight each."""
    weights = [settings.get(name) for name in ("mscale", "mscale_all_dim")]
    one, all_lanes = (0.1 * (weight or 1) * math.log(factor) + 1 for weight in weights)
    return one / all_lanes if all(weights) else 0.1 * math.log(factor) + 1


def _longrope(settings: Settings, head_dim: int, max_positions: int) -> tuple[np.ndarray, float]:
    """LongRoPE (arXiv 2402.13753) up to the trained length, which has frequencies of its own."""
    base, trained = _base(settings, head_dim), settings["original_max_position_embeddings"]
    factor = settings.get("factor") or max_positions / trained
    attention_factor = math.sqrt(1 + math.log(max(factor, 1)) / math.log(trained))
    short = np.asarray(settings["short_factor"], np.float32)
    if short.shape != base.shape:
        raise UserError(
            f"rope scaling 'longrope' has {short.size} short factors for {base.size} frequencies; "
            "fix them or download the model again"
        )
    return base / short, settings.get("attention_factor") or attention_factor


# By `rope_type`. Each takes settings, H and the most positions that the model supports, and returns
# frequencies [H / 2] and the attention factor.
SCALINGS: Mapping[str, Callable[[Settings, int, int], tuple[np.ndarray, float]]] = MappingProxyType(
    {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
)
# Only for families that refuse texts beyond the trained length, see `rope_from_config`.
_ALLOWED: Mapping[str, Callable[[Settings, int, int], tuple[np.ndarray, float]]] = MappingProxyType(
    {"longrope": _longrope}
)


# What each type reads besides its base, and what it can do without.
_NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
        "yarn": (),
        "longrope": ("original_max_position_embeddings",),
    }
)
_OPTIONAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "yarn": (
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
        ),
        "longrope": ("factor", "attention_factor"),
    }
)
# Divisors of the frequencies up to the trained length, and beyond it.
_LISTS = frozenset({"short_factor", "long_factor"})
_COMMON = frozenset({"rope_theta", "rope_type", "type"})
# Settings that change nothing with these values. `transformers` adds the trained length to every
# type that has one, and reads neither it nor a factor of 1 in the others.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {"partial_rotary_factor": (1,), "factor": (1,), "attention_factor": (1,), "finetuned": (True,)}
)


def rope_from_config(
    config: Mapping[str, Any],
    head_dim: int,
    allowed: Collection[str] = (),
    theta: float = 10000.0,
) -> Rope:
    """Returns the rotary embedding of a Hugging Face configuration.

    Args:
      config: the configuration, with `rope_parameters` or with `rope_theta` and `rope_scaling`.
      head_dim: H.
      allowed: what else the family honours: settings that others refuse, and the type "longrope",
        whose result holds up to the trained length only.
      theta: base of the frequencies unless it is configured.

    Raises:
      UserError: the type of scaling is not in `SCALINGS`, or one of its settings is missing, out of
        range or unknown.
    """
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    settings.setdefault("rope_theta", _configured_base(config, theta))
    # Older configurations call it "type".
    kind = settings.get("rope_type") or settings.get("type") or "default"
    scalings = {**SCALINGS, **{name: _ALLOWED[name] for name in _ALLOWED if name in allowed}}
    if not isinstance(kind, str) or kind not in scalings:
        raise UserError(
            f"rope scaling {str(kind)[:40]!r} is not supported; use a model with one of "
            f"{', '.join(scalings)}"
        )
    _check_settings(kind, settings, allowed)
    if "partial_rotary_factor" in allowed:
        head_dim = int(head_dim * (settings.get("partial_rotary_factor") or 1))
    if head_dim % 2 or head_dim == 0:
        raise UserError(
            f"rope would turn {head_dim} lanes of a head, but it turns pairs; use another model"
        )
    with np.errstate(all="ignore"):  # the result is checked
        frequencies, factor = scalings[kind](settings, head_dim, config["max_position_embeddings"])
    if not (np.isfinite(frequencies).all() and math.isfinite(factor)):
        raise UserError(f"rope scaling {kind!r} has settings without a finite result; fix them")
    return Rope(tuple(float(f) for f in frequencies.astype(np.float32)), factor)


def rope_settings(
    config: Mapping[str, Any], theta: float = 10000.0, **usual: Any
) -> Mapping[str, Any]:
    """Returns the rotary settings of a configuration, older and newer ones alike.

    Args:
      config: the configuration.
      theta: base of the frequencies unless it is configured.
      usual: what the family has unless it is configured.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": _configured_base(config, theta), **usual, **given}


def _configured_base(config: Mapping[str, Any], theta: float) -> Any:
    base = config.get("rope_theta")
    return theta if base is None else base


def full_attention(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a configuration with the rotary settings of its layers without a window.

    They are the settings of all layers, unless `rope_parameters` has some for each type of layer.
    """
    settings = config.get("rope_parameters") or {}
    return _of_kind(config, settings[FULL] or {}) if FULL in settings else config


def ropes_by_kind(
    config: Mapping[str, Any], head_dim: int, *, theta: float, local_theta: float
) -> Mapping[str, Rope]:
    """Returns the rotary embedding of each type of layer.

    Args:
      config: the configuration, with `rope_parameters` for each type, or with `rope_theta` and
        `rope_scaling` for the layers without a window.
      head_dim: H.
      theta: base of the layers without a window unless it is configured.
      local_theta: base of the layers with a window unless it is configured.

    Raises:
      UserError: see `rope_from_config`.
    """
    given = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    full = {"rope_theta": _configured_base(config, theta)} | scaling | (given.get(FULL) or {})
    near = {"rope_theta": local_theta} | (given.get(SLIDING) or {})
    kinds = {FULL: full, SLIDING: near}
    if any(kind.get("truncate") is False for kind in given.values() if isinstance(kind, dict)):
        raise UserError(
            "rope_parameters has truncate=False for one type of layer, which is not supported, "
            "because `transformers` ignores it; remove it or use another model"
        )
    return {kind: rope_from_config(_of_kind(config, kinds[kind]), head_dim) for kind in kinds}


def _of_kind(config: Mapping[str, Any], settings: Settings) -> Mapping[str, Any]:
    positions = config["max_position_embeddings"]
    return {"rope_parameters": settings, "max_position_embeddings": positions}


def _check_settings(kind: str, settings: Settings, allowed: Collection[str]) -> None:
    """Checks that the settings of a type are there, in range, and all that can change the text."""
    numbers = {"rope_theta", *_NEEDED[kind]}
    optional = {*_OPTIONAL.get(kind, ()), *allowed} - {"longrope", *_LISTS}
    numbers |= {name for name in optional if settings.get(name) is not None}
    for name in sorted(numbers):
        value: Any = settings.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value < math.inf):
            raise UserError(
                f"rope scaling {kind!r} has {name}={str(value)[:40]}, but it must be a number "
                "above 0; fix it or download the model again"
            )
    if kind == "llama3" and settings["high_freq_factor"] <= settings["low_freq_factor"]:
        raise UserError(
            "rope scaling 'llama3' has a high_freq_factor that is not above its low_freq_factor; "
            "fix them or download the model again"
        )
    if kind == "yarn" and "factor" not in settings:
        # Only a factor of null follows from the lengths, as in `transformers`.
        raise UserError("rope scaling 'yarn' has no factor; add it or download the model again")
    if kind == "yarn" and settings["rope_theta"] <= 1:
        raise UserError("rope scaling 'yarn' needs a rope_theta above 1; fix it")
    if (settings.get("partial_rotary_factor") or 0) > 1 and "partial_rotary_factor" in allowed:
        raise UserError("partial_rotary_factor is above 1; fix it or download the model again")
    known = numbers | _COMMON | ({"truncate"} if kind == "yarn" else set())
    known |= _LISTS if kind == "longrope" else set()
    for name, value in settings.items():
        neutral = value is None or value is False or value in _NEUTRAL.get(name, ())
        unread = name == "original_max_position_embeddings" and kind in ("default", "linear")
        if name not in known and not neutral and not unread:
            raise UserError(
                f"rope scaling {str(kind)!r} has {str(name)[:40]}={str(value)[:40]}, which is not "
                "supported; use a model without it"
            )
