"""Finds the weights that a compiled program copies before it multiplies them."""

import math
import re
from typing import Any

import jax

from emsjax.plan.loops import Computations, computations

_SLICE = re.compile(r"= (\w+)\[([0-9,]+)\]\S* dynamic-slice\(")
_COPY = re.compile(r"= (\w+)\[([0-9,]+)\]\S* (?:copy|transpose|bitcast-convert)\(")
_FUSED = re.compile(r" fusion\(.* calls=%?([\w.-]+)")
# How the compilers write a product: for GPUs, for TPUs, as a kernel, and as plain sums.
_PRODUCTS = (" dot(", " convolution(", " custom-call(", " reduce(")


def copied_weights(program: str, params: Any) -> list[str]:
    """Returns the type and shape of each array of weights that a decode program copies.

    Args:
      program: text of the compiled program.
      params: the model's parameters, or their shapes. Weights with three axes are stacks of layers.
    """
    stacks = [x.shape for x in jax.tree.leaves(params) if len(x.shape) == 3]
    least = min(math.prod(shape[1:]) for shape in stacks)
    return copied_slices(program, least) + copied_stacks(program, stacks)


def copied_stacks(program: str, stacks: list[tuple[int, ...]]) -> list[str]:
    """Returns the type and shape of each whole stack that is copied, in any order of its axes."""
    known = [sorted(shape) for shape in stacks]
    found = ((kind, sizes) for kind, sizes in _COPY.findall(program))
    return [
        f"{kind}[{sizes}]" for kind, sizes in found if sorted(map(int, sizes.split(","))) in known
    ]


def copied_slices(program: str, least: int) -> list[str]:
    """Returns the type and shape of each large slice that an operation makes apart from a product.

    A product that reads its part of a stack in place has the slice in its own fusion. Any other
    slice of a stack is a copy, so that the weights are moved two or three times instead of once.

    Args:
      program: text of a compiled program.
      least: number of elements from which on a slice counts.
    """
    found = computations(program)
    in_products = _in_products(found)
    return [
        f"{kind}[{sizes}]"
        for name, lines in found.items()
        if name not in in_products
        for kind, sizes in _SLICE.findall("\n".join(lines))
        if math.prod(map(int, sizes.split(","))) >= least
    ]


def _in_products(found: Computations) -> set[str]:
    """Returns the computations of fusions with a product, and those fused into them in turn."""
    inner = {name: _FUSED.findall("\n".join(lines)) for name, lines in found.items()}
    fused = {name for names in inner.values() for name in names}
    todo = [name for name in fused if _multiplies(found.get(name, []))]
    reached: set[str] = set()
    while todo:
        name = todo.pop()
        reached.add(name)
        todo += inner.get(name, ())
    return reached


def _multiplies(lines: list[str]) -> bool:
    return any(product in line for line in lines for product in _PRODUCTS)
