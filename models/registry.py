"""The supported model families, by Hugging Face `model_type`."""

from collections.abc import Mapping
from types import MappingProxyType

from emsjax.models.cohere import COHERE, COHERE2
from emsjax.models.exaone4 import EXAONE4
from emsjax.models.falcon import FALCON
from emsjax.models.family import Family
from emsjax.models.gemma import GEMMA
from emsjax.models.gemma2 import GEMMA2
from emsjax.models.gemma3 import GEMMA3
from emsjax.models.glm4 import GLM4
from emsjax.models.gpt2 import GPT2
from emsjax.models.gpt_neox import GPT_NEOX
from emsjax.models.gpt_oss import GPT_OSS
from emsjax.models.granite import GRANITE
from emsjax.models.helium import HELIUM
from emsjax.models.llama import LLAMA
from emsjax.models.ministral3 import MINISTRAL3
from emsjax.models.mistral import MISTRAL
from emsjax.models.mixtral import MIXTRAL
from emsjax.models.nemotron import NEMOTRON
from emsjax.models.olmo import OLMO2, OLMO3
from emsjax.models.olmoe import OLMOE
from emsjax.models.opt import OPT
from emsjax.models.phi import PHI
from emsjax.models.phi3 import PHI3
from emsjax.models.qwen2 import MIMO, QWEN2
from emsjax.models.qwen3 import QWEN3
from emsjax.models.qwen3_moe import QWEN3_MOE
from emsjax.models.smollm3 import SMOLLM3
from emsjax.models.stablelm import STABLELM
from emsjax.models.starcoder2 import STARCODER2

_ALL = (
    *(
        OPT,
        GPT2,
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GEMMA,
        GEMMA2,
        GEMMA3,
        SMOLLM3,
        GRANITE,
        OLMO2,
        OLMO3,
    ),
    *(PHI3, MINISTRAL3, GPT_NEOX, STARCODER2, COHERE, COHERE2),
    *(QWEN3_MOE, MIXTRAL, OLMOE, GPT_OSS),
    *(GLM4, EXAONE4, NEMOTRON, PHI, STABLELM, FALCON, HELIUM, MIMO),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})
