"""Refuses to keep 4 bits where there are none, or where they cannot be kept."""

from collections.abc import Collection, Mapping

from emsjax.errors import UserError
from emsjax.loading.opened import OpenedModel
from emsjax.loading.parameters import Parameter

_OTHERWISE = "quantise it to int8, or leave quantize out"


def check_kept(
    opened: OpenedModel, parameters: Mapping[str, Parameter], kept: Collection[str]
) -> None:
    """Checks that a request to keep 4 bits can be met.

    Args:
      opened: the model.
      parameters: its parameters.
      kept: those that are kept in 4 bits.

    Raises:
      UserError: the checkpoint has no 4 bits, or none that can be kept.
    """
    int4 = opened.source.int4
    if not int4:
        raise UserError(
            f"{opened.name} has no weights in 4 bits to keep, and rounding to them costs much "
            "quality; use a GPTQ, AWQ, compressed-tensors or GGUF (Q4_0, Q4_1, Q4_K) copy of the "
            "model, or quantise to int8."
        )
    if not kept:
        raise UserError(
            f"{opened.name} has weights in 4 bits, but no product whose tensors all are, in all "
            f"layers, in groups of 16 inputs or more and in one order of inputs; {_OTHERWISE}."
        )
