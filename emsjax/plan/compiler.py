"""Finds out whether the TPU compiler is installed."""

import importlib.metadata

from emsjax.errors import UserError


def check_compiler(topology: str) -> None:
    """Checks that a compiler for a TPU is installed.

    Raises:
      UserError: there is no compiler, or it does not know the TPU.
    """
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"compiling for TPU {topology} needs the TPU compiler, libtpu, which is available for "
            "Linux on x86-64; pip install 'jax[tpu]', or give --no-compile."
        ) from None
    # Imported here because it takes jax, for which an answer without a compiler need not wait.
    from emsjax.pallas_kernels.ahead import find_device

    try:
        find_device(topology)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"the installed TPU compiler (libtpu {version}) does not know TPU {topology} "
            f"({_line(error)}); pip install -U 'jax[tpu]', or give --no-compile."
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
