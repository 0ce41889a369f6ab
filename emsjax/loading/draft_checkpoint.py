"""Trained drafts on disk: parameters, and a manifest that names target and training data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save

from emsjax.engine.model import Model
from emsjax.errors import UserError, foreign
from emsjax.host.files import replace_text, replacing
from emsjax.host.json_text import to_json
from emsjax.limits import HIDDEN_TRANSFER, JAKIRO, OWN_LAYERS, RECURRENT
from emsjax.loading.hf.config import read_json
from emsjax.models.family import dotted
from emsjax.models.hidden_transfer import HiddenTransfer, TransferConfig
from emsjax.models.jakiro_head import JakiroConfig, JakiroHead
from emsjax.models.quantised import picked_floats
from emsjax.models.recurrent_draft import RecurrentConfig, RecurrentDraft
from emsjax.models.state_map import StateMap, StateMapConfig

MANIFEST = "draft.json"
_FORMAT = 1
_PARAMS = "draft.safetensors"
_TOKEN_IDS = "token_ids"
# A draft recognises its target by a few values of the target's embedding. Only their direction is
# compared, so that a copy in another dtype or a quantised copy is recognised as well.
_PROBE_ROWS, _PROBE_WIDTH = 16, 32
_SAME_DIRECTION = 0.95
# The kinds of drafts, each with the class of its sizes and that of its parameters.
_KINDS: dict[str, tuple[Any, Any]] = {
    RECURRENT: (RecurrentConfig, RecurrentDraft),
    OWN_LAYERS: (StateMapConfig, StateMap),
    HIDDEN_TRANSFER: (TransferConfig, HiddenTransfer),
    JAKIRO: (JakiroConfig, JakiroHead),
}


@dataclass(frozen=True)
class DraftManifest:
    """The contents of `draft.json`.

    Attributes:
      target: name of the model that the draft was trained for.
      probe: values from that model's embedding, see `probe`.
      sizes: the fields of the kind's configuration, such as `RecurrentConfig`.
      trained_on: description of the training text.
      evaluation: measurements on held-out text.
      kind: one of `DRAFT_KINDS`.
    """

    target: str
    probe: list[float]
    sizes: dict[str, int]
    trained_on: str
    evaluation: dict[str, Any] = field(default_factory=dict)
    kind: str = RECURRENT


def probe(model: Model) -> list[float]:
    """Returns values of a model's embedding that identify the model."""
    rows = np.linspace(0, model.vocab_size - 1, _PROBE_ROWS).astype(np.int32)
    values = np.asarray(picked_floats(model.embedding_kernel, rows), np.float32)[:, :_PROBE_WIDTH]
    return [round(float(x), 5) for x in values.ravel()]


def is_for(manifest: DraftManifest, model: Model) -> bool:
    """Returns whether the draft was trained for a model, which its embedding tells."""
    width = manifest.sizes.get("embedding_size", manifest.sizes["hidden_size"])
    if width != model.embedding_kernel.shape[1]:
        return False
    ours, theirs = np.asarray(probe(model)), np.asarray(manifest.probe)
    if ours.shape != theirs.shape:
        return False
    return bool(ours @ theirs > _SAME_DIRECTION * np.linalg.norm(ours) * np.linalg.norm(theirs))


def save_draft(directory: Path, draft: nnx.Module, token_ids: Any, manifest: DraftManifest) -> None:
    """Writes a draft with its parameters in bfloat16.

    Args:
      directory: target directory; created if missing.
      draft: the draft.
      token_ids: int32[Vd], the tokens that the draft can propose.
      manifest: description of the draft.
    """
    tensors = {
        dotted(path): np.asarray(value[...]).astype(ml_dtypes.bfloat16)
        for path, value in nnx.to_flat_state(nnx.state(draft))
    }
    directory.mkdir(parents=True, exist_ok=True)
    ids = np.asarray(token_ids, np.int32)
    with replacing(directory / _PARAMS) as stream:
        stream.write(save({**tensors, _TOKEN_IDS: ids}))
    text = to_json({"format": _FORMAT, **asdict(manifest)}, indent=1)
    replace_text(directory / MANIFEST, text + "\n")


def read_manifest(directory: Path) -> DraftManifest:
    """Reads the manifest of a draft.

    Raises:
      UserError: the manifest is damaged or was written by a newer version.
    """
    content = read_json(directory / MANIFEST, "train it again")
    if content.pop("format", None) != _FORMAT:
        raise UserError(
            f"the draft {directory} is in a format this version cannot read; train it again with "
            "`python -m emsjax.train`."
        )
    with foreign(f"{directory / MANIFEST} is damaged", "train it again."):
        manifest = DraftManifest(**content)
        _check_manifest(manifest)
    return manifest


def _check_manifest(manifest: DraftManifest) -> None:
    """Checks the values needed to build the draft and to recognise its target."""
    if not np.isfinite(np.asarray(manifest.probe, np.float32)).all():
        raise ValueError("the probe contains values that are not finite numbers")
    if manifest.kind not in _KINDS:
        raise ValueError(f"it is of the unknown kind {manifest.kind!r}")
    sizes = asdict(_KINDS[manifest.kind][0](**manifest.sizes))
    if "width" in sizes:
        sizes["width"] += 1  # may be 0
    if "first_layer" in sizes:
        sizes["layers that run"] = sizes["num_layers"] - sizes["first_layer"]
    if any(not isinstance(size, int) or size < 1 for size in sizes.values()):
        raise ValueError(f"the sizes {manifest.sizes} are not all positive integers")


def _check_ids(ids: np.ndarray) -> None:
    """Checks that token ids are distinct, non-negative and in ascending order."""
    ascending = ids.ndim == 1 and len(ids) > 0 and ids.dtype == np.int32
    if not ascending or ids[0] < 0 or (np.diff(ids) <= 0).any():
        raise ValueError("its token ids are not distinct and in ascending order")


def read_draft(directory: Path, dtype: Any) -> tuple[Any, np.ndarray]:
    """Reads a draft.

    Returns:
      The draft with its parameters in `dtype`, such as a `RecurrentDraft`, and the tokens it can
      propose, int32[Vd].

    Raises:
      UserError: the draft is damaged.
    """
    manifest = read_manifest(directory)
    with foreign(f"the draft {directory} is damaged", "train it again."):
        tensors: Mapping[str, np.ndarray] = load_file(directory / _PARAMS)
        sizes, kind = _KINDS[manifest.kind]
        config = sizes(**manifest.sizes)
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
        filled = []
        for path, value in nnx.to_flat_state(abstract):
            name = dotted(path)
            tensor = tensors[name]
            if tensor.shape != value.shape:
                raise ValueError(f"{name} has shape {tensor.shape}, expected {value.shape}")
            if not np.isfinite(tensor.astype(np.float32)).all():
                raise ValueError(f"{name} contains values that are not finite numbers")
            filled.append((path, value.replace(tensor.astype(dtype))))
        ids = tensors[_TOKEN_IDS]
        _check_ids(ids)
    return nnx.merge(graphdef, nnx.from_flat_state(filled)), ids
