"""What a step pads: nothing (EMS-SD), or what batch speculative decoding is known to pad.

The padded method and its two ablations (arXiv 2405.07542) are there to compare with. They run in
the same loop with the same kernels and give the same text.
"""

from types import MappingProxyType
from typing import NamedTuple


class Policy(NamedTuple):
    """What is padded.

    Attributes:
      pad_inputs: every decoding slot computes as many rows as the one with the longest draft.
      align_cache: every decoding slot's cache grows by as much as that of the one that accepted
        most; what it has no tokens for are holes, which are read and masked.
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
