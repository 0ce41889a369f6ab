"""Lowering for a Hopper GPU that need not be there."""

from collections.abc import Callable

import jax

from emsjax.pallas_kernels.backends import compiling_for


def lower_for_hopper(call: Callable[..., jax.Array], *arguments: jax.ShapeDtypeStruct) -> None:
    """Fails where a kernel cannot be lowered, or none is used."""
    disabled = [
        jax.export.DisabledSafetyCheck.custom_call(f"mosaic_gpu{suffix}") for suffix in ("", "_v2")
    ]
    export = jax.export.export(jax.jit(call), platforms=["cuda"], disabled_checks=disabled)
    with compiling_for("gpu"):
        assert "mosaic_gpu" in export(*arguments).mlir_module()
