"""The product with one layer's 4-bit weights in XLA, which makes them floats first."""

from emsjax.pallas_kernels.grouped_matmul.as_floats import multiply as grouped_matmul

__all__ = ["grouped_matmul"]
