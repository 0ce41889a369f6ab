"""Refuses files next to a model that would change its text and that emsjax does not apply."""

from pathlib import Path

from emsjax.errors import UserError

_ADAPTERS = (
    *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"),
    *("adapters.safetensors", "adapters.npz"),  # MLX's
)
_QUANTISED = (
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
    "quantization_config.json",
)
_CODE = ("custom_generate/generate.py",)


def check_beside(directory: Path, described: bool = False) -> None:
    """Checks the files next to a model's `config.json`.

    Args:
      directory: the model's.
      described: whether its configuration describes how the weights are quantised, so that a file
        which does so adds nothing.

    Raises:
      UserError: one of them is an adapter, code that generates, or describes quantised weights.
    """
    for kind, names, remedy in (
        ("an adapter", _ADAPTERS, "merge it into the weights (peft's `merge_and_unload`)"),
        ("a quantisation", _QUANTISED, "use a copy that is not quantised, or a GGUF file"),
        ("code that generates", _CODE, "use another model"),
    ):
        for name in () if described and names is _QUANTISED else names:
            if (directory / name).is_file():
                raise UserError(
                    f"{directory} holds {kind} ({name}), which emsjax does not apply; {remedy}, "
                    f"or move {name} elsewhere to use the model without it."
                )
