"""What a step pads: nothing (EMS-SD), or what batched speculative decoding usually pads.

The padded method and its two ablations (arXiv 2405.07542) exist for comparison. They run in the
same loop with the same kernels and generate the same text.
"""

from types import MappingProxyType
from typing import NamedTuple


class Policy(NamedTuple):
    """The parts of a step that are padded.

    Attributes:
      pad_inputs: every decoding slot computes as many rows as the one with the longest draft.
      align_cache: every decoding slot's cache grows by as much as that of the slot that accepted
        most. Positions without a token are holes, which attention reads and masks.
    """

    pad_inputs: bool = False
    align_cache: bool = False


EMS = Policy()
POLICIES = MappingProxyType(
    {
        "none": EMS,
        "ems": EMS,
        "vanilla": Policy(pad_inputs=True, align_cache=True),
        "unpad-kv": Policy(pad_inputs=True),
        "unpad-input": Policy(align_cache=True),
    }
)
