"""Which floating dtype a model is loaded in."""

import jax

from emsjax.errors import UserError

NAMES = ("float32", "bfloat16", "float16")


def check_dtype(name: str) -> str:
    """Give back `name` where it is "auto" or a dtype that weights can have.

    Raises:
      UserError: it is neither.
    """
    if name not in ("auto", *NAMES):
        raise UserError(f"dtype {name!r} is unknown; choose auto, {', '.join(NAMES)}.")
    return name


def dtype_for_device(requested: str, own: str) -> str:
    """The dtype to compute in.

    "auto" is float32 on CPU, where XLA converts the whole cache around each bfloat16 scatter. On
    an accelerator it is the checkpoint's own, but never float32, which halves the speed.

    Args:
      requested: "auto" or a dtype.
      own: the checkpoint's dtype.
    """
    if check_dtype(requested) != "auto":
        return requested
    if jax.default_backend() == "cpu":
        return "float32"
    return "bfloat16" if own == "float32" else own
