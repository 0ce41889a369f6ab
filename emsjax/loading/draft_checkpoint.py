"""A trained draft on disk: parameters, and what it was trained for and on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from emsjax.errors import UserError
from emsjax.loading.hf.config import read_json
from emsjax.models.recurrent_draft import RecurrentConfig, RecurrentDraft

MANIFEST = "draft.json"
_FORMAT = 1
_PARAMS = "draft.safetensors"
_TOKEN_IDS = "token_ids"
# The target is known by a few values of its embedding: by their direction, so that another dtype
# or a quantised copy of it is known as well.
_PROBE_ROWS, _PROBE_WIDTH = 16, 32
_SAME_DIRECTION = 0.95


@dataclass(frozen=True)
class DraftManifest:
    """What `draft.json` says.

    Attributes:
      target: the name of the model it drafts for.
      probe: values of that model's embedding.
      sizes: the fields of `RecurrentConfig`.
      trained_on: which text, for people.
      evaluation: what was measured on text held out.
    """

    target: str
    probe: list[float]
    sizes: dict[str, int]
    trained_on: str
    evaluation: dict[str, Any] = field(default_factory=dict)


def probe(embedding: Any) -> list[float]:
    """Values of an embedding [V, D] by which its model is known."""
    rows = np.linspace(0, embedding.shape[0] - 1, _PROBE_ROWS).astype(int)
    values = np.asarray(embedding[rows, :_PROBE_WIDTH], np.float32)
    return [round(float(x), 5) for x in values.ravel()]


def is_for(manifest: DraftManifest, embedding: Any) -> bool:
    """Whether the draft was trained for the model with this embedding [V, D]."""
    if manifest.sizes.get("hidden_size") != embedding.shape[1]:
        return False
    ours, theirs = np.asarray(probe(embedding)), np.asarray(manifest.probe)
    if ours.shape != theirs.shape:
        return False
    return bool(ours @ theirs > _SAME_DIRECTION * np.linalg.norm(ours) * np.linalg.norm(theirs))


def save_draft(
    directory: Path, draft: RecurrentDraft, token_ids: Any, manifest: DraftManifest
) -> None:
    """Writes a draft, in bfloat16; `directory` is made if need be."""
    tensors = {
        ".".join(map(str, path)): np.asarray(value[...]).astype(ml_dtypes.bfloat16)
        for path, value in nnx.to_flat_state(nnx.state(draft))
    }
    directory.mkdir(parents=True, exist_ok=True)
    ids = np.asarray(token_ids, np.int32)
    save_file({**tensors, _TOKEN_IDS: ids}, directory / _PARAMS)
    text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=1)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> DraftManifest:
    """What a draft says of itself.

    Raises:
      UserError: it is damaged, or from a newer version.
    """
    content = read_json(directory / MANIFEST, "train it again")
    if content.pop("format", None) != _FORMAT:
        raise UserError(
            f"the draft {directory} is in a format this version cannot read; train it again with "
            "`python -m emsjax.train`."
        )
    try:
        manifest = DraftManifest(**content)
        _check_manifest(manifest)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{directory / MANIFEST} is damaged ({error}); train it again.") from error
    return manifest


def _check_manifest(manifest: DraftManifest) -> None:
    """Refuses what a draft cannot be made or recognised from."""
    if not np.isfinite(np.asarray(manifest.probe, np.float32)).all():
        raise ValueError("the probe is not of numbers")
    sizes = RecurrentConfig(**manifest.sizes)
    if any(not isinstance(size, int) or size < 1 for size in asdict(sizes).values()):
        raise ValueError(f"the sizes are {manifest.sizes}")


def _check_ids(ids: np.ndarray) -> None:
    """Refuses what are not different tokens in ascending order."""
    ascending = ids.ndim == 1 and len(ids) > 0 and ids.dtype == np.int32
    if not ascending or ids[0] < 0 or (np.diff(ids) <= 0).any():
        raise ValueError("the tokens it knows are not in order")


def read_draft(directory: Path, dtype: Any) -> tuple[RecurrentDraft, np.ndarray]:
    """The draft with its parameters in `dtype`, and the tokens it can guess, int32[Vd].

    Raises:
      UserError: it is damaged.
    """
    manifest = read_manifest(directory)
    try:
        tensors: Mapping[str, np.ndarray] = load_file(directory / _PARAMS)
        config = RecurrentConfig(**manifest.sizes)
        graphdef, abstract = nnx.split(
            nnx.eval_shape(lambda: RecurrentDraft(config, rngs=nnx.Rngs(0)))
        )
        filled = []
        for path, value in nnx.to_flat_state(abstract):
            tensor = tensors[".".join(map(str, path))]
            if tensor.shape != value.shape:
                raise ValueError(f"{'.'.join(map(str, path))} has the shape {tensor.shape}")
            if not np.isfinite(tensor.astype(np.float32)).all():
                raise ValueError(f"{'.'.join(map(str, path))} is not of numbers")
            filled.append((path, value.replace(tensor.astype(dtype))))
        ids = tensors[_TOKEN_IDS]
        _check_ids(ids)
    except Exception as error:  # safetensors raises a kind of its own
        raise UserError(
            f"the draft {directory} is damaged ({' '.join(str(error).split())}); train it again."
        ) from error
    return nnx.merge(graphdef, nnx.from_flat_state(filled)), ids
