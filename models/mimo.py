"""MiMo-7B: Qwen2, with modules for multi-token prediction, which `models.mtp_head` runs."""

from dataclasses import replace

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap
from emsjax.models.llama import llama_weights
from emsjax.models.qwen2 import QWEN2, qwen2_config


def mimo_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of a MiMo model without its modules, which only a drafter reads."""
    layout = llama_weights(config)
    return replace(layout, ignore=(*layout.ignore, r"mtp_layers\..*"))


_HARMLESS = frozenset({"num_nextn_predict_layers", *(QWEN2.harmless or ())})
MIMO = Family("mimo", qwen2_config, mimo_weights, _HARMLESS)
