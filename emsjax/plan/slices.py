"""Names of one device or of several that are linked, such as `v5e`, `v5e-8` and `h100x8`.

A TPU slice has Google Cloud's name, which counts the cores of v4 and v5p: `v5p-8` is four chips.
GPUs of a server are counted after an `x`. Imports no jax.
"""

import itertools
import re
from typing import NamedTuple

from emsjax.costs.hardware import HARDWARE, Hardware
from emsjax.errors import UserError

_NUMBERED = re.compile(r"(.+?)([-x])(\d+)")
_TWO_CORES = ("v4", "v5p")
# Numbers of chips in a slice of at most eight chips, and of GPUs in a server.
_CHIPS, _GPUS = (4, 8), (2, 4, 8)


class Slice(NamedTuple):
    """One device, or several that are linked.

    Attributes:
      chip: name of one device in `HARDWARE`.
      number: how many there are.
    """

    chip: str
    number: int = 1

    @property
    def hardware(self) -> Hardware:
        """One of the devices."""
        return HARDWARE[self.chip]

    @property
    def name(self) -> str:
        """The name of all of them, which `slice_named` understands."""
        if self.number == 1:
            return self.chip
        if self.hardware.platform == "gpu":
            return f"{self.chip}x{self.number}"
        return f"{self.chip}-{self.number * (2 if self.chip in _TWO_CORES else 1)}"

    def __str__(self) -> str:
        """Says for messages what it is."""
        number = "one" if self.number == 1 else self.number
        return f"{number} {self.hardware.name}"


def slice_named(name: str) -> Slice:
    """Returns the devices of a name.

    Raises:
      UserError: there is no such device, or it does not come in such a number.
    """
    given = name.lower()
    if given in HARDWARE:
        return Slice(given)
    found = _NUMBERED.fullmatch(given)
    if found is None or found[1] not in HARDWARE:
        raise UserError(
            f"--topology {name} is unknown; choose from {', '.join(HARDWARE)}, or name several "
            "linked devices, such as v5e-8 or h100x8."
        )
    sizes = _sizes(found[1])
    if (each := sizes.get(f"{found[1]}{found[2]}{int(found[3])}")) is None:
        choice = ", ".join(itertools.starmap(_with_chips, sizes.items()))
        raise UserError(
            f"--topology {name} is unknown; {HARDWARE[found[1]].name} comes as {choice}."
        )
    return each


def _sizes(chip: str) -> dict[str, Slice]:
    """Returns the slices of a kind of device by name, the smallest first."""
    gpu = HARDWARE[chip].platform == "gpu"
    several = (Slice(chip, number) for number in (_GPUS if gpu else _CHIPS))
    return {f"{chip}{'x' if gpu else '-'}1": Slice(chip), **{each.name: each for each in several}}


def _with_chips(name: str, each: Slice) -> str:
    """Returns the name, and the number of chips where the name's number is that of cores."""
    cores = each.chip in _TWO_CORES and each.number > 1
    return f"{name} ({each.number} chips)" if cores else name
