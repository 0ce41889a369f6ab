"""What the tensor cores of GPUs take; imports no Pallas, unlike `hopper`."""

import jax.numpy as jnp

DTYPES = (jnp.bfloat16, jnp.float16)
# Rows of the left operand of a product on Hopper: a multiple of this.
TENSOR_CORE_ROWS = 64
