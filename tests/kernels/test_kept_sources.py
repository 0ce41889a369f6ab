"""Compiled functions are kept for the text of all files that have a part in them."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emsjax.pallas_kernels import host_call
from emsjax.pallas_kernels.grouped_matmul import cpu_kernel as grouped_matmul
from emsjax.pallas_kernels.layer_matmul import cpu_kernel as layer_matmul
from emsjax.pallas_kernels.ragged_attention import cpu_kernel as ragged_attention


def imported(file: Path) -> set[Path]:
    """Returns the package's files from which a file imports names."""
    found = [
        importlib.util.find_spec(node.module)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emsjax.")
    ]
    return {Path(spec.origin) for spec in found if spec is not None and spec.origin is not None}


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (grouped_matmul, "uint8"),
        (layer_matmul, "float32"),
        (layer_matmul, "int8"),
        (ragged_attention, "float32"),
        (ragged_attention, "int8"),
    ],
)
def test_a_file_that_is_used_is_among_the_sources(kernel: Any, dtype: str):
    given: list[str] = []

    def note(name: str, count: Any, run: Any, sources: Any, **options: Any) -> None:
        given.extend(sources)

    kernel.register_kernel("unused", np.dtype(dtype), register=note)
    own, *others = map(Path, given)
    assert own == Path(kernel.__file__)
    used = set().union(*map(imported, others)) - {Path(str(host_call.__file__))}
    assert used <= set(others)
