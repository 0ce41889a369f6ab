"""Reads what NVIDIA's assembler reports of each kernel: registers and spills.

It prints this to the standard output with `MOSAIC_GPU_DUMP_PTXAS=1` in the environment.
"""

import re
from typing import NamedTuple

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+?)(?:_mosaic_gpu_kernel)?' for '\w+'"
    r"(?:(?!Compiling entry).)*?(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r"(?:(?!Compiling entry).)*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Registers(NamedTuple):
    """The registers of one kernel.

    Attributes:
      kernel: its name.
      registers: registers of a thread.
      spilled_bytes: bytes of registers that a thread stores to memory and loads again.
    """

    kernel: str
    registers: int
    spilled_bytes: int


def read_registers(text: str) -> list[Registers]:
    """Returns the registers of each kernel, in the order in which they were compiled.

    Args:
      text: what the assembler printed.
    """
    return [
        Registers(
            found["name"], int(found["registers"]), int(found["stores"]) + int(found["loads"])
        )
        for found in _KERNEL.finditer(text)
    ]
