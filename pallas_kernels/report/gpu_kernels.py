"""Compiles our kernels for a GPU without one, and says what they take of a multiprocessor."""

import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.ahead import compile_on
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.pallas_kernels.quantised import Grouped, Weights
from emsjax.pallas_kernels.report.ahead import attention_arguments, attention_call
from emsjax.pallas_kernels.report.registers import Registers, read_kernels
from emsjax.pallas_kernels.report.work import Work, weights_of

HEADER = ("model", "kernel", "for", "registers", "spilled bytes", "shared KiB")
# What weights are kept in, and the inputs of a group of 4 bits, or half as many.
WEIGHTS = ("bfloat16", "int8", "int4")
GROUP = 128


class GPURow(NamedTuple):
    """The figures of one kernel.

    Attributes:
      model: its name.
      work: what it is compiled for.
      found: the figures.
    """

    model: str
    work: str
    found: Registers

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADER`."""
        _, registers, spilled, shared = self.found
        figures = str(registers), str(spilled), f"{shared / 1024:.0f}"
        return (self.model, self.found.kernel, self.work, *figures)

    def record(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return {"model": self.model, "work": self.work, **self.found._asdict()}


def measure(gpu: str, model: str, work: Work) -> Iterator[GPURow]:
    """Compiles a model's attention and products, and yields a row for each kernel.

    What XLA computes without one of our kernels has no row.

    Args:
      gpu: one of `GPUS`.
      model: one of `MODELS`.
      work: the attention to compute. Products get as many rows as it has slots and rows.
    """
    for rows in dict.fromkeys((1, work.max_q_len)):
        one = work._replace(q_lens=(rows,) * work.num_slots, max_q_len=rows)
        for int8, cache in ((False, "bfloat16"), (True, "int8")):
            given = one._replace(int8=int8)
            arguments = functools.partial(attention_arguments, given)
            for tree in (False, True) if rows > 1 else (False,):
                name = f"{rows} row{'s' * (rows > 1)} a slot, {cache} cache{', trees' * tree}"
                for found in _kernels(gpu, attention_call(given, None, tree=tree), arguments):
                    yield GPURow(model, name, found)
        for dtype in WEIGHTS:
            for num_out, num_in in weights_of(model):
                shape = one.num_rows, num_out, num_in
                for found in _kernels(
                    gpu, layer_product, functools.partial(_product, dtype, *shape)
                ):
                    yield GPURow(model, f"{one.num_rows} rows, {num_out}x{num_in} {dtype}", found)


def layer_product(x: jax.Array, kernels: Weights, layer: jax.Array) -> jax.Array:
    """The product with a layer's weights, by the GPU's own kernel."""
    return layer_matmul(x, kernels, layer=layer)


def _product(dtype: str, num_rows: int, num_out: int, num_in: int) -> tuple[Any, ...]:
    """The abstract arguments of `layer_product`."""
    kernels: Any = jax.ShapeDtypeStruct((2, num_out, num_in), dtype)
    if dtype == "int4":
        groups = 2, num_in // math.gcd(num_in, GROUP), num_out
        scales: Any = jax.ShapeDtypeStruct(groups, jnp.float32)
        kernels = Grouped(kernels, scales)
    x = jax.ShapeDtypeStruct((num_rows, num_in), jnp.bfloat16)
    return x, kernels, jax.ShapeDtypeStruct((), jnp.int32)


def _kernels(
    gpu: str, call: Callable[..., jax.Array], arguments: Callable[[], tuple]
) -> list[Registers]:
    with tempfile.TemporaryDirectory() as directory:
        compile_on(gpu, call, arguments, dump=Path(directory))
        return read_kernels(Path(directory))
