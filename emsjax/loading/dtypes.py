"""Chooses the dtypes that a model is loaded in."""

from collections.abc import Collection

import jax

from emsjax.errors import UserError
from emsjax.limits import KV_DTYPES, QUANTIZATIONS

NAMES = ("float32", "bfloat16", "float16")


def check_dtype(name: str) -> str:
    """Returns `name` if it is "auto" or one of `NAMES`.

    Raises:
      UserError: `name` is neither.
    """
    if name not in ("auto", *NAMES):
        raise UserError(f"dtype {name!r} is unknown; choose auto, {', '.join(NAMES)}.")
    return name


def dtype_for_device(requested: str, own: str) -> str:
    """Returns the dtype to compute in.

    On CPU, "auto" means float32, because XLA converts the whole cache around each bfloat16
    scatter there. On an accelerator it means the checkpoint's dtype, except that float32 becomes
    bfloat16, because float32 halves the speed.

    Args:
      requested: "auto" or one of `NAMES`.
      own: the checkpoint's dtype.
    """
    if check_dtype(requested) != "auto":
        return requested
    if jax.default_backend() == "cpu":
        return "float32"
    return "bfloat16" if own == "float32" else own


def check_quantize(method: str | None, option: str = "quantize") -> str | None:
    """Returns `method`, the value of an option, if it is None or one of `QUANTIZATIONS`.

    Raises:
      UserError: it is neither.
    """
    return _check_choice(option, method, QUANTIZATIONS)


def check_kv_dtype(name: str | None) -> str | None:
    """Returns `name` if it is None or one of `KV_DTYPES`.

    Raises:
      UserError: it is neither.
    """
    return _check_choice("kv_dtype", name, KV_DTYPES)


def _check_choice(option: str, given: str | None, choices: Collection[str]) -> str | None:
    if given is not None and given not in choices:
        raise UserError(
            f"{option} {given!r} is unknown; choose {', '.join(choices)}, or leave it out."
        )
    return given
