"""The letters of array axes in code, docstrings and einsums.

B  slots (samples decoded together)
T  packed rows of a step (its capacity)
W  rows of a step whose logits are computed
S  cache capacity of a slot, in tokens
L  layers
D  model width
N  query heads
K  key/value heads
H  head width
V  vocabulary
E  experts of a layer
C  experts that a row chooses
X  tiles of rows that all have one expert
Y  places of a tile
"""

# The name of the mesh axis along which the devices that share a model lie.
SHARDS = "shards"


def round_up(value: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple
