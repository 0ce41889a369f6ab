"""Reads what NVIDIA's assembler makes of each kernel: registers, spills and shared memory.

`compile_on(…, dump=…)` writes the files. Mosaic's have the assembler's account in them; for
Triton's, which have only its input, the assembler runs once more.
"""

import importlib.metadata
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What our kernels are called in programs. XLA numbers equal names.
KERNELS = ("ragged_attention", "layer_matmul", "grouped_matmul", "expert_matmul", "residual_norm")
_ASSEMBLED = re.compile(
    r"Compiling entry function '(?P<name>\w+?)(?:_mosaic_gpu_kernel)?' for '\w+'"
    r"(?:(?!Compiling entry).)*?(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r"(?:(?!Compiling entry).)*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
# The call that starts a Mosaic kernel: three sizes each of grid, cluster and block, then the bytes.
_MOSAIC_SHARED = re.compile(
    r"call void @mosaic_gpu_launch_kernel\(ptr [^,]+,(?: i32 [^,]+,){9} i32 (\d+),"
)
_TRITON_SHARED = re.compile(r"(\w+) grid: .* shared_memory: (\d+) bytes")
_ENTRY = re.compile(r"\.entry (\w+)\(")
_TARGET = re.compile(r"\.target (\w+)")


class Registers(NamedTuple):
    """What one kernel takes of a multiprocessor.

    Attributes:
      kernel: its name.
      registers: registers of a thread.
      spilled_bytes: bytes of registers that a thread stores to memory and loads again.
      shared_bytes: shared memory of a thread block.
    """

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def read_kernels(dump: Path) -> list[Registers]:
    """Returns the figures of our kernels in a program.

    Args:
      dump: the directory into which the compiler wrote.
    """
    return [*_mosaic_kernels(dump), *_triton_kernels(dump)]


def _mosaic_kernels(dump: Path) -> Iterator[Registers]:
    for file in sorted(dump.glob("*.ptxas")):
        shared = _MOSAIC_SHARED.search(file.with_suffix(".ll").read_text())
        if shared is None:
            raise ValueError(f"{file.with_suffix('.ll')} starts no kernel")
        yield from read_assembled(file.read_text(), {"": int(shared[1])})


def _triton_kernels(dump: Path) -> Iterator[Registers]:
    launches = "".join(file.read_text() for file in dump.glob("*.thunk_sequence.txt"))
    shared = {name: int(size) for name, size in _TRITON_SHARED.findall(launches)}
    for file in sorted(dump.glob("module_*.ptx")):
        code = file.read_text()
        if any(name.startswith(KERNELS) for name in _ENTRY.findall(code)):
            yield from read_assembled(_assemble(file, _TARGET.search(code)[1]), shared)  # type: ignore[index]


def _assemble(file: Path, architecture: str) -> str:
    """Returns what the assembler prints for a file of code."""
    parts = importlib.metadata.files("nvidia-cuda-nvcc") or []
    assembler = next(part.locate() for part in parts if part.name == "ptxas")
    command = [str(assembler), "-v", "--gpu-name", architecture, str(file), "-o", "/dev/null"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def read_assembled(text: str, shared: dict[str, int]) -> Iterator[Registers]:
    """Yields the figures of each kernel, in the order in which they were assembled.

    Args:
      text: what the assembler printed.
      shared: bytes of shared memory by the kernel's name, or of every kernel by "".
    """
    for found in _ASSEMBLED.finditer(text):
        name, spilled = found["name"], int(found["stores"]) + int(found["loads"])
        size = shared[name] if name in shared else shared[""]
        yield Registers(name, int(found["registers"]), spilled, size)
