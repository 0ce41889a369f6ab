"""Finds out whether the compiler for a device is installed."""

import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from emsjax.costs.hardware import HARDWARE
from emsjax.errors import UserError


class Compiler(NamedTuple):
    """The compiler for the devices of a platform.

    Attributes:
      name: as messages show it.
      package: the distribution that contains it.
      install: how to install the package.
      update: how to update it.
    """

    name: str
    package: str
    install: str
    update: str


COMPILERS: Mapping[str, Compiler] = MappingProxyType(
    {
        "tpu": Compiler(
            "TPU compiler", "libtpu", "pip install 'jax[tpu]'", "pip install -U 'jax[tpu]'"
        ),
        "gpu": Compiler(
            "GPU compiler",
            "jax-cuda13-plugin",
            "install emsjax with its extra [gpu-compiler]",
            "update jax and jax-cuda13-plugin",
        ),
    }
)


def check_compiler(topology: str, number: int = 1) -> None:
    """Checks that the compiler for a device is installed.

    Args:
      topology: name in `HARDWARE`.
      number: how many of these devices to compile for.

    Raises:
      UserError: there is no compiler, or it does not know the device.
    """
    compiler = COMPILERS[HARDWARE[topology].platform]
    try:
        version = importlib.metadata.version(compiler.package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"compiling needs the {compiler.name}, {compiler.package}, which is available for "
            f"Linux on x86-64; {compiler.install}, or give --no-compile."
        ) from None
    # Imported here because it takes jax, for which an answer without a compiler need not wait.
    from emsjax.pallas_kernels.ahead import find_devices

    try:
        find_devices(topology, number)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"the installed {compiler.name} ({compiler.package} {version}) does not know "
            f"{HARDWARE[topology].name} ({_line(error)}); {compiler.update}, or give --no-compile."
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
