"""What the tensor cores of a Hopper GPU take; imports no Pallas, unlike `hopper`."""

# Rows of the left operand of a product: a multiple of this.
TENSOR_CORE_ROWS = 64
