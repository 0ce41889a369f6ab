"""Lowering for a Hopper GPU on a machine without one."""

from collections.abc import Callable

import jax

from emsjax.pallas_kernels.backends import compiling_for


def lower_for_hopper(call: Callable[..., jax.Array], *arguments: jax.ShapeDtypeStruct) -> None:
    """Fails if the call uses no Mosaic GPU kernel, or one that cannot be lowered."""
    disabled = [
        jax.export.DisabledSafetyCheck.custom_call(f"mosaic_gpu{suffix}") for suffix in ("", "_v2")
    ]
    export = jax.export.export(jax.jit(call), platforms=["cuda"], disabled_checks=disabled)
    with compiling_for("gpu"):
        assert "mosaic_gpu" in export(*arguments).mlir_module()
