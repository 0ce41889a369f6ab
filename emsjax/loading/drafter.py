"""Loads model-based drafters: a smaller model, a published head, a draft trained by `train`."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.drafters.draft_model import DraftModel
from emsjax.drafters.own_layers import OwnLayers, Parts
from emsjax.drafters.recurrent import Recurrent
from emsjax.errors import UserError, about, foreign
from emsjax.host.device import put_by_row
from emsjax.limits import OWN_LAYERS, RECURRENT
from emsjax.loading.draft_checkpoint import (
    MANIFEST,
    DraftManifest,
    is_for,
    read_draft,
    read_manifest,
)
from emsjax.loading.head_load import PublishedHead, find_head, load_head
from emsjax.loading.load import LoadedModel, load_model, locate
from emsjax.models.quantised import picked
from emsjax.models.recurrent_draft import Shared

_SHIPPED = Path(__file__).parents[1] / "drafts"


def shipped_draft(target: LoadedModel, kind: str = RECURRENT) -> Path | None:
    """Returns the directory of the draft that this package ships for the target, or None."""
    for file in sorted(_SHIPPED.glob(f"*/{MANIFEST}")):
        manifest = read_manifest(file.parent)
        if manifest.kind == kind and is_for(manifest, target.model):
            return file.parent
    return None


def load_drafter(
    draft: str | Path,
    target: LoadedModel,
    draft_length: int,
    *,
    dtype: str,
    quantize: str | None = None,
    narrowest: int,
) -> DraftModel | PublishedHead | Recurrent | OwnLayers:
    """Loads a draft trained by `emsjax.train`, a published head, or a model of the same vocabulary.

    Args:
      draft: directory of a trained draft, directory or hub id of a published head, or anything that
        `load_model` accepts; "own-layers" for the draft of that kind that this package ships.
      target: the model to draft for.
      draft_length: k, the most draft tokens per step.
      dtype: dtype of a draft model, as for `load_model`; heads and trained drafts use the target's.
      quantize: "int8" for int8 weights in a draft model, as for `load_model`.
      narrowest: see `DraftModel.narrowest`.

    Raises:
      UserError: the draft cannot be found or loaded, does not match the target, or cannot be
        quantised.
    """
    if draft == OWN_LAYERS:
        draft = _own_layers_shipped(target)
    with foreign(f"draft {str(draft)[:100]!r} cannot be looked up", "name a directory"):
        directory = Path(draft).expanduser()
        trained = (directory / MANIFEST).is_file()
    if trained:
        if quantize is not None:
            raise UserError(
                f"draft {str(draft)!r} was trained for {target.name} and stays as it is; leave out "
                "draft_quantize"
            )
        return _trained(directory, target, draft_length, narrowest)
    with about("draft_model", str(draft)):
        head = find_head(locate(draft))
        if head is None:
            loaded = load_model(
                draft, dtype=dtype, quantize=quantize, devices=target.devices, divided=False
            )
        elif quantize is None:
            return load_head(head, target, draft_length, narrowest)
        else:
            raise UserError(
                f"a published {head.kind} head stays as it is; leave out draft_quantize"
            )
    check_vocabulary(loaded, target)
    _warn_if_larger(loaded, target)
    graphdef, weights = nnx.split(loaded.model)
    return DraftModel(
        name=loaded.name,
        weights=weights,
        merge=partial(nnx.merge, graphdef),
        vocab_size=target.model.vocab_size,
        draft_length=draft_length,
        narrowest=narrowest,
    )


def check_vocabulary(draft: LoadedModel, target: LoadedModel) -> None:
    """Checks that draft model and target give every token id the same meaning.

    Without both tokenizers, only the vocabulary sizes are compared.

    Raises:
      UserError: the vocabularies differ; the message names the first difference.
    """
    if draft.tokenizer is None or target.tokenizer is None:
        sizes = draft.model.vocab_size, target.model.vocab_size
        if sizes[0] == sizes[1]:
            return
        raise UserError(
            f"the draft model {draft.name} has {sizes[0]} tokens and {target.name} has {sizes[1]}; "
            "choose a draft model with the target's vocabulary"
        )
    ours, theirs = (_by_id(m.tokenizer) for m in (target, draft))
    for token in sorted(ours.keys() | theirs.keys()):  # ids may have gaps
        if ours.get(token) != theirs.get(token):
            raise UserError(
                f"the vocabulary of the draft model {draft.name} differs from that of "
                f"{target.name}: token {token} is {_shown(theirs.get(token))} there and "
                f"{_shown(ours.get(token))} here; choose a draft model of the same family"
            )


def _by_id(tokenizer: Any) -> dict[int, str]:
    with foreign("the vocabulary of a tokenizer cannot be read", "choose another draft model"):
        return {number: text for text, number in tokenizer.get_vocab().items()}


def _shown(token: str | None) -> str:
    return "missing" if token is None else repr(token)


def _warn_if_larger(draft: LoadedModel, target: LoadedModel) -> None:
    theirs, ours = (
        sum(x.size for x in jax.tree.leaves(nnx.state(m.model))) for m in (draft, target)
    )
    if theirs >= ours:
        print(
            f"warning: the draft model {draft.name} ({theirs / 1e6:.0f} million parameters) is not "
            f"smaller than {target.name} ({ours / 1e6:.0f} million), so drafting will not pay off",
            file=sys.stderr,
        )


def _own_layers_shipped(target: LoadedModel) -> Path:
    shipped = shipped_draft(target, OWN_LAYERS)
    if shipped is None:
        raise UserError(
            f"emsjax comes with no draft of the own layers of {target.name}; make one with `python "
            "-m emsjax.train --kind own-layers` and give its directory"
        )
    return shipped


def _trained(
    directory: Path, target: LoadedModel, draft_length: int, narrowest: int
) -> Recurrent | OwnLayers:
    """Loads a draft that `emsjax.train` made, after checking that it is for this target."""
    manifest = read_manifest(directory)
    model, embedding = target.model, target.model.embedding_kernel
    if (difference := _difference(manifest, target)) is not None:
        raise UserError(
            f"the draft {directory} was trained for {manifest.target}, not for {target.name}"
            f"{difference}; train a draft for {target.name} with `python -m emsjax.train`"
        )
    draft, token_ids = read_draft(directory, model.dtype)
    if token_ids[-1] >= model.vocab_size:
        raise UserError(
            f"the draft {directory} is damaged (its token ids go up to {token_ids[-1]}, but "
            f"{target.name} has {model.vocab_size} tokens); train it again with "
            "`python -m emsjax.train`"
        )
    graphdef, params = nnx.split(draft)
    name = f"{directory.name} {manifest.sizes}"
    params = jax.tree.map(partial(put_by_row, place=target.devices.everywhere), params)
    shared = share(target, token_ids)
    if manifest.kind == OWN_LAYERS:
        config, parts = draft.config, (graphdef, params, shared)
        return _own_layers(name, parts, config.first_layer, target, draft_length, narrowest)
    return Recurrent(
        name=name,
        weights=(params, shared),
        merge=partial(nnx.merge, graphdef),
        vocab_size=model.vocab_size,
        hidden_size=embedding.shape[1],
        draft_length=draft_length,
    )


def _difference(manifest: DraftManifest, target: LoadedModel) -> str | None:
    """Returns how the target differs from that of a draft, "" if in its weights; None if not."""
    model, sizes = target.model, manifest.sizes
    ours = {"vocab_size": model.vocab_size, "num_layers": model.num_layers}
    if manifest.kind == OWN_LAYERS:
        for name, size in (ours | {"hidden_size": model.hidden_size}).items():
            if sizes[name] != size:
                return f", whose {name} is {size} and not {sizes[name]}"
    return None if is_for(manifest, model) else ""


def _own_layers(
    name: str,
    parts: tuple[Any, Any, Shared],
    first_layer: int,
    target: LoadedModel,
    draft_length: int,
    narrowest: int,
) -> OwnLayers:
    """Makes a drafter of the target's layers from `first_layer` on.

    Args:
      name: for display.
      parts: definition and parameters of the map, and what it shares with the target.
      first_layer: the first layer that runs.
      target: the target.
      draft_length: k.
      narrowest: see `OwnLayers.narrowest`.
    """
    (map_def, params, shared), model = parts, target.model
    target_def, target_params = nnx.split(model)

    def merge(state_map: Any, target: Any) -> tuple[Any, Any]:
        return nnx.merge(map_def, state_map), nnx.merge(target_def, target)

    # A row reads its experts only, and the target's whole output projection not at all.
    layers = model.sizes.step_bytes(1) - _nbytes(model.output_kernel)
    run = layers * (model.num_layers - first_layer) / model.num_layers
    return OwnLayers(
        name=name,
        weights=Parts(params, shared, target_params),
        merge=merge,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        first_layer=first_layer,
        read_bytes=round(run) + _nbytes((params, shared.head)),
        draft_length=draft_length,
        narrowest=narrowest,
    )


def _nbytes(arrays: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(arrays))


def share(target: LoadedModel, token_ids: Any) -> Shared:
    """Returns the parts of the target that a draft computes with.

    The embedding is shared. Only the output projection's rows for `token_ids` are copied.
    """
    ids = jnp.asarray(token_ids, jnp.int32)
    head = target.devices.to_all(picked(target.model.output_kernel, ids))
    return Shared(target.model.embedding_table, head, ids)
