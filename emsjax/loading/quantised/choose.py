"""Finds the format of a quantised checkpoint in its configuration."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.hf.keys import shown
from emsjax.loading.quantised.awq import awq
from emsjax.loading.quantised.bitsandbytes import bitsandbytes
from emsjax.loading.quantised.compressed_tensors import compressed_tensors
from emsjax.loading.quantised.config import Fields
from emsjax.loading.quantised.format import Format
from emsjax.loading.quantised.fp8 import fp8
from emsjax.loading.quantised.gptq import gptq
from emsjax.loading.quantised.mxfp4 import mxfp4

FORMATS: Mapping[str, Callable[[Fields], Format]] = MappingProxyType(
    {
        "gptq": gptq,
        "awq": awq,
        "compressed-tensors": compressed_tensors,
        "fp8": fp8,
        "bitsandbytes": bitsandbytes,
        "mxfp4": mxfp4,
    }
)
_KEYS = ("quantization_config", "compression_config")


def split_format(hf_config: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], Format | None]:
    """Splits a configuration into the model's part and the format of its weights.

    Args:
      hf_config: the content of a `config.json`.
      origin: its name in messages.

    Returns:
      The configuration without its quantisation, and the format; None if nothing is quantised.

    Raises:
      UserError: the format, or something that it uses, is not supported.
    """
    rest = {key: value for key, value in hf_config.items() if key not in _KEYS}
    found = next((hf_config[key] for key in _KEYS if hf_config.get(key)), None)
    if found is None:
        return rest, None
    method = found.get("quant_method") if isinstance(found, dict) else found
    if not isinstance(method, str) or method not in FORMATS:
        said = "without a quant_method" if method is None else f"of method {shown(method)}"
        raise UserError(
            f"{origin} has a quantization_config {said}, which is not "
            f"supported; use a copy in one of {', '.join(FORMATS)}, GGUF, or one that is not "
            "quantised."
        )
    fields = Fields(found, origin)
    made = FORMATS[method](fields)
    fields.check_all_read()
    return rest, made
