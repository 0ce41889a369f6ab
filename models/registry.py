"""The supported model families, by Hugging Face `model_type`."""

from collections.abc import Mapping
from types import MappingProxyType

from emsjax.models.family import Family
from emsjax.models.gemma import GEMMA
from emsjax.models.gemma2 import GEMMA2
from emsjax.models.gemma3 import GEMMA3
from emsjax.models.gpt2 import GPT2
from emsjax.models.llama import LLAMA
from emsjax.models.mistral import MISTRAL
from emsjax.models.opt import OPT
from emsjax.models.qwen2 import QWEN2
from emsjax.models.qwen3 import QWEN3

_ALL = (OPT, GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})
