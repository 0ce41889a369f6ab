"""Which GPUs Triton makes code for; imports no Pallas."""

from emsjax.pallas_kernels.backends import target_capability

# The first generation of compute capabilities, Ampere.
OLDEST = 8


def no_triton() -> str | None:
    """Returns why the GPU that programs are compiled for cannot run kernels in Triton, or None.

    For an unknown GPU it returns None too, so that the kernels can be interpreted.
    """
    found = target_capability()
    if found is None or int(found.split(".")[0]) >= OLDEST:
        return None
    return f"the GPU has compute capability {found}; Triton requires {OLDEST}.0"
