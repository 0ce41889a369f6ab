"""The one entry point to models: a name or path in, a model ready to run out."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax import nnx

from emsjax.engine.model import Model
from emsjax.errors import UserError
from emsjax.loading.build import read_weights, supported
from emsjax.loading.default_model import DEFAULT_NAME, default_model_dir
from emsjax.loading.dtypes import check_dtype, dtype_for_device
from emsjax.loading.hf.tokenizer import load_tokenizer
from emsjax.loading.hub import hub_snapshot, is_repo_id
from emsjax.loading.opened import OpenedModel, open_model
from emsjax.loading.weights import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights on the default device.

    Attributes:
      model: the language model.
      tokenizer: None where the model comes without one: use token ids then.
      eos_token_ids: tokens that end a text; empty where the model names none.
      name: the model's name, for people.
      generation_config: what it says of how to generate; empty where it says nothing.
      hf_config: its Hugging Face configuration, every default filled in.
    """

    model: Model
    tokenizer: "PreTrainedTokenizerBase | None"
    eos_token_ids: tuple[int, ...]
    name: str
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]


def load_model(
    model: str | Path | None = None,
    *,
    dtype: str = "auto",
    tokenizer: str | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
      model: one of our checkpoints, a Hugging Face directory, a GGUF file or a directory with
        one, or a model of the Hugging Face hub; None for the default model.
      dtype: "float32", "bfloat16", "float16", or "auto": float32 on CPU, elsewhere the
        checkpoint's own, or bfloat16 for float32 and quantised ones.
      tokenizer: directory or hub id of another tokenizer than the model's.
      progress: called with (tensors read, tensors in all).

    Raises:
      UserError: there is no such model or tokenizer, it is damaged or of an unsupported family,
        or `dtype` is unknown.
    """
    check_dtype(dtype)
    opened = find_model(model)
    computed = dtype_for_device(dtype, opened.source.dtype)
    read_tokenizer = opened.tokenizer if tokenizer is None else partial(_other_tokenizer, tokenizer)
    # Beside the weights: importing transformers takes as long as copying those of a small model.
    with ThreadPoolExecutor(max_workers=1) as pool:
        vocabulary = pool.submit(read_tokenizer)
        graphdef, params = read_weights(opened, computed, progress)
    return LoadedModel(
        model=nnx.merge(graphdef, params),
        tokenizer=vocabulary.result(),
        eos_token_ids=opened.eos_token_ids,
        name=DEFAULT_NAME if model is None else opened.name,
        hf_config=opened.hf_config,
        generation_config=opened.generation_config,
    )


def find_model(model: str | Path | None) -> OpenedModel:
    """Open a model wherever it is, downloading it if need be, without reading its weights.

    Raises:
      UserError: as for `load_model`.
    """
    path = default_model_dir() if model is None else _located(model)
    return open_model(path, supported())


def _located(model: str | Path) -> Path:
    """A local path, or the directory of a model of the hub."""
    path = Path(model).expanduser()
    if path.exists():
        return path
    if isinstance(model, Path) or not is_repo_id(model):
        raise UserError(
            f"model {str(model)!r} does not exist; name a model directory, a .gguf file or a "
            "model of the Hugging Face hub (owner/name)."
        )
    return hub_snapshot(model)


def _other_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """A tokenizer that is not the model's own."""
    path = _located(name)
    found = open_model(path, supported()).tokenizer() if path.is_file() else load_tokenizer(path)
    if found is None:
        raise UserError(f"tokenizer {name!r} has no tokenizer files (such as tokenizer.json).")
    return found
