"""Environment variables that the TPU compiler needs, set before jax is imported.

This module imports no jax, so that it can be used first.
"""

from pathlib import Path


def tpu_compiler(dump: Path | None = None) -> dict[str, str]:
    """Returns the variables for compiling on a machine without a TPU.

    Args:
      dump: an empty directory into which the compiler writes its account of every kernel.
    """
    found = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    if dump is not None:
        found["TF_CPP_MIN_LOG_LEVEL"] = "3"
        # The compiler writes nothing for a program that comes from jax's cache.
        found["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        flags = {
            "xla_jf_dump_to": dump,
            "xla_jf_dump_llo_text": "true",
            # Only the passes that `report.bundles` reads: writing all of them takes longer than
            # compiling.
            "xla_jf_dump_llo_pass_label_regex": "original|final_bundles|final_hlo",
        }
        found["LIBTPU_INIT_ARGS"] = " ".join(f"--{name}={value}" for name, value in flags.items())
    return found
