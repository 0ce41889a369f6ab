"""Loads a model by name or path: the single entry point for everything that runs models."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax import nnx

from emsjax.engine.devices import ONE, Devices
from emsjax.engine.model import Model
from emsjax.errors import UserError, about, foreign
from emsjax.host.device import check_device
from emsjax.loading.build import read_weights
from emsjax.loading.default_model import default_model_dir, default_name
from emsjax.loading.dtypes import check_dtype, check_kv_dtype, check_quantize, dtype_for_device
from emsjax.loading.families import supported
from emsjax.loading.hf.tokenizer import load_tokenizer
from emsjax.loading.hub import hub_snapshot, is_repo_id
from emsjax.loading.opened import OpenedModel, open_model
from emsjax.loading.weights import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights on its devices.

    Attributes:
      model: the language model.
      tokenizer: the model's tokenizer; None if it has none, so that prompts must be token ids.
      eos_token_ids: end-of-text token ids; empty if the model declares none.
      name: display name.
      hf_config: the Hugging Face configuration with every default filled in.
      generation_config: the contents of `generation_config.json`; empty if there is no such file.
      devices: the devices that hold the model.
      path: its directory or file; None if it has none.
    """

    model: Model
    tokenizer: "PreTrainedTokenizerBase | None"
    eos_token_ids: tuple[int, ...]
    name: str
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    devices: Devices = ONE
    path: Path | None = None


def load_model(
    model: str | Path | None = None,
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    kv_dtype: str | None = None,
    tokenizer: str | None = None,
    progress: Progress | None = None,
    devices: Devices = ONE,
    divided: bool = True,
) -> LoadedModel:
    """Loads a model and its tokenizer.

    Args:
      model: an emsjax checkpoint, a Hugging Face directory, a GGUF file, a directory with one
        GGUF file, or a Hugging Face hub id; None for the default model.
      dtype: "float32", "bfloat16", "float16" or "auto". On CPU, "auto" means float32; elsewhere
        it means the checkpoint's dtype, or bfloat16 for float32 and quantised checkpoints.
      quantize: "int8" to turn the weights of all products and the token embedding into int8, with
        one scale per output channel; "int4" to keep a checkpoint's 4 bits; "none" for floats; None
        to leave them as the checkpoint has them, but floats for 4 bits on a CPU, or if no kernel
        suits their sizes.
      kv_dtype: "int8" for an int8 K/V cache; None for one in the dtype of the activations.
      tokenizer: directory, GGUF file or hub id of a tokenizer to use instead of the model's.
      progress: called with (tensors read, total tensors).
      devices: the devices that share the model.
      divided: whether each of them has its part of the model; if not, all have all of it.

    Raises:
      UserError: the model or tokenizer does not exist, is damaged or belongs to an unsupported
        family, `dtype`, `quantize` or `kv_dtype` is unknown, the model has int8 weights and
        `quantize` is given, so many devices cannot share it, or jax has no device.
    """
    check_device()
    check_dtype(dtype)
    check_quantize(quantize)
    check_kv_dtype(kv_dtype)
    opened = find_model(model)
    computed = dtype_for_device(dtype, opened.source.dtype)
    read_tokenizer = opened.tokenizer
    if tokenizer is not None:
        with about("tokenizer", tokenizer):  # before the weights are read, which may take minutes
            read_tokenizer = partial(_other_tokenizer, tokenizer, locate(tokenizer))
    # In parallel, because importing transformers takes as long as copying a small model's weights.
    with ThreadPoolExecutor(max_workers=1) as pool:
        vocabulary = pool.submit(read_tokenizer)
        graphdef, params = read_weights(
            opened, computed, progress, quantize, devices, divided=divided
        )
    built = nnx.merge(graphdef, params)
    if kv_dtype is not None:
        built.kv_dtype = kv_dtype
        built = _with_even_keys(built, devices)
    return LoadedModel(
        model=built,
        tokenizer=vocabulary.result(),
        eos_token_ids=opened.eos_token_ids,
        name=default_name(opened.name) if model is None else opened.name,
        hf_config=opened.hf_config,
        generation_config=opened.generation_config,
        devices=devices,
        path=opened.path,
    )


def _with_even_keys(model: Any, devices: Devices) -> Any:
    """Returns the model with weights that suit int8 keys; each device changes its own part."""
    from emsjax.models.even_keys import even_out_keys

    if devices.number == 1:
        even_out_keys(model)
        return model
    graphdef, params = nnx.split(model)

    def even_out(params: nnx.State) -> nnx.State:
        part = nnx.merge(graphdef, params)
        even_out_keys(part)
        return nnx.state(part)

    places = devices.specs_of(params)
    program = devices.program(even_out, (places,), places, donate=(0,))
    return nnx.merge(graphdef, program(params))


def find_model(model: str | Path | None) -> OpenedModel:
    """Opens a model without reading its weights, downloading it if necessary.

    Raises:
      UserError: as for `load_model`.
    """
    path = default_model_dir() if model is None else locate(model)
    return open_model(path, supported())


def locate(model: str | Path) -> Path:
    """Returns a local path, or the directory of a downloaded hub model.

    Raises:
      UserError: there is no such path and no such model.
    """
    # A name may be too long for a path, or begin with "~" and an unknown user.
    with foreign(f"model {str(model)[:100]!r} cannot be looked up", "name a model directory."):
        path = Path(model).expanduser()
        if path.exists():
            return path
    if isinstance(model, Path) or not is_repo_id(model):
        raise UserError(
            f"model {str(model)!r} does not exist; name a model directory, a .gguf file or a "
            "model of the Hugging Face hub (owner/name)."
        )
    return hub_snapshot(model)


def _other_tokenizer(name: str, path: Path) -> "PreTrainedTokenizerBase":
    """Loads a tokenizer that replaces the model's own."""
    found = open_model(path, supported()).tokenizer() if path.is_file() else load_tokenizer(path)
    if found is None:
        raise UserError(
            f"tokenizer {name!r} has no tokenizer files (such as tokenizer.json); name another one."
        )
    return found
