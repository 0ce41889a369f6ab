"""Loads drafts that `emsjax.train` made for a target."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.drafters.eagle import Parts as HeadParts
from emsjax.drafters.hidden_transfer import HiddenTransfer
from emsjax.drafters.jakiro import Jakiro
from emsjax.drafters.own_layers import OwnLayers, Parts
from emsjax.drafters.recurrent import Recurrent
from emsjax.engine.devices import bytes_of_device
from emsjax.errors import UserError
from emsjax.host.device import put_by_row
from emsjax.limits import HIDDEN_TRANSFER, JAKIRO, OWN_LAYERS, RECURRENT
from emsjax.loading.draft_checkpoint import DraftManifest, is_for, read_draft, read_manifest
from emsjax.loading.load import LoadedModel
from emsjax.loading.sources.int8 import Int8, quantise
from emsjax.models.quantised import picked
from emsjax.models.recurrent_draft import Shared
from emsjax.pallas_kernels.quantised import Quantised, Weights

Trained = Recurrent | OwnLayers | HiddenTransfer | Jakiro


class _Read(NamedTuple):
    """A draft that was read.

    Attributes:
      name: for display.
      config: its sizes.
      graphdef: its definition.
      params: its parameters.
      shared: what it shares with the target.
    """

    name: str
    config: Any
    graphdef: Any
    params: Any
    shared: Shared


def load_trained(
    directory: Path, target: LoadedModel, draft_length: int, narrowest: int
) -> Trained:
    """Loads a draft that `emsjax.train` made, after checking that it is for this target.

    Args:
      directory: of the draft.
      target: the model to draft for.
      draft_length: k.
      narrowest: see `OwnLayers.narrowest`.

    Raises:
      UserError: it is damaged, or for another target.
    """
    manifest = read_manifest(directory)
    model = target.model
    check_target(directory, manifest, target)
    # On a CPU a pass takes as long as its bytes take to read. Rounded guesses change no text.
    narrow = jax.default_backend() == "cpu" and model.dtype == jnp.float32
    dtype = jnp.bfloat16 if narrow and manifest.kind == RECURRENT else model.dtype
    draft, token_ids = read_draft(directory, dtype)
    check_ids(directory, token_ids, target)
    if manifest.kind == JAKIRO:
        draft.dtype = jnp.dtype(model.dtype)
    graphdef, params = nnx.split(draft)
    params = jax.tree.map(partial(put_by_row, place=target.devices.everywhere), params)
    name, shared = f"{directory.name} {manifest.sizes}", share(target, token_ids)
    if narrow and isinstance(shared.head, jax.Array):
        shared = shared._replace(head=target.devices.to_all(_in_int8(shared.head)))
    read = _Read(name, draft.config, graphdef, params, shared)
    if manifest.kind in (OWN_LAYERS, HIDDEN_TRANSFER):
        return _inner(manifest.kind, read, target, draft_length, narrowest)
    if manifest.kind == JAKIRO:
        return _jakiro(read, target, draft_length, narrowest)
    return Recurrent(
        name=name,
        weights=(params, shared),
        merge=partial(nnx.merge, graphdef),
        vocab_size=model.vocab_size,
        hidden_size=model.embedding_kernel.shape[1],
        draft_length=draft_length,
    )


def check_target(directory: Path, manifest: DraftManifest, target: LoadedModel) -> None:
    """Checks that a draft was trained for this target.

    Raises:
      UserError: it was not.
    """
    if (difference := _difference(manifest, target)) is not None:
        raise UserError(
            f"the draft {directory} was trained for {manifest.target}, not for {target.name}"
            f"{difference}; train a draft for {target.name} with `python -m emsjax.train`"
        )


def check_ids(directory: Path, token_ids: np.ndarray, target: LoadedModel) -> None:
    """Checks that the target has all tokens that a draft can propose, int32[Vd] in order.

    Raises:
      UserError: it has not.
    """
    if token_ids[-1] >= target.model.vocab_size:
        raise UserError(
            f"the draft {directory} is damaged (its token ids go up to {token_ids[-1]}, but "
            f"{target.name} has {target.model.vocab_size} tokens); train it again with "
            "`python -m emsjax.train`"
        )


def _in_int8(head: jax.Array) -> Weights:
    """Rounds an output projection [Vd, D] to int8, with one scale per token.

    One that holds NaN or infinity stays as it is: the target can write without these tokens.
    """
    floats = np.asarray(head)
    if not np.isfinite(floats).all():
        return head
    held = Int8(np.empty(head.shape, np.int8), np.empty(head.shape[:1], np.float32))
    quantise(floats, held)
    return Quantised(jnp.asarray(held.values), jnp.asarray(held.scale))


def _difference(manifest: DraftManifest, target: LoadedModel) -> str | None:
    """Returns how the target differs from that of a draft, "" if in its weights; None if not."""
    model, sizes = target.model, manifest.sizes
    ours = {"vocab_size": model.vocab_size, "num_layers": model.num_layers}
    if "first_layer" in sizes:
        for name, size in (ours | {"hidden_size": model.hidden_size}).items():
            if sizes[name] != size:
                return f", whose {name} is {size} and not {sizes[name]}"
    return None if is_for(manifest, model) else ""


def _inner(
    kind: str, read: _Read, target: LoadedModel, draft_length: int, narrowest: int
) -> OwnLayers:
    """Makes a drafter of the target's layers from `read.config.first_layer` on."""
    config, model = read.config, target.model
    # A row reads its experts only, and the target's whole output projection not at all.
    layers = model.sizes.step_bytes(1) - bytes_of_device(model.output_kernel)
    number = model.num_layers - config.first_layer
    target_def, target_params = nnx.split(model)

    def merge(draft: Any, target: Any) -> tuple[Any, Any]:
        return nnx.merge(read.graphdef, draft), nnx.merge(target_def, target)

    fields: dict[str, Any] = {
        "name": read.name,
        "read_bytes": round(layers * number / model.num_layers)
        + bytes_of_device((read.params, read.shared.head)),
        "weights": Parts(read.params, read.shared, target_params),
        "merge": merge,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "first_layer": config.first_layer,
        "draft_length": draft_length,
        "narrowest": narrowest,
        # Those of the layers that run, and those that a pass has once.
        "exchanges": tuple(
            each._replace(times=-(-each.times * number // model.num_layers))
            for each in model.sizes.exchanges
        ),
    }
    if kind == OWN_LAYERS:
        return OwnLayers(**fields)
    return HiddenTransfer(**fields, places=config.places)


def _jakiro(read: _Read, target: LoadedModel, draft_length: int, narrowest: int) -> Jakiro:
    """Makes a drafter of a Jakiro head."""
    model, shared = target.model, read.shared
    target_def, target_params = nnx.split(model)

    def merge(head: Any, target: Any) -> tuple[Any, Any]:
        return nnx.merge(read.graphdef, head), nnx.merge(target_def, target)

    return Jakiro(
        name=read.name,
        weights=HeadParts(
            read.params, model.embedding_table, shared.token_ids, target_params, shared
        ),
        merge=merge,
        vocab_size=model.vocab_size,
        hidden_size=2 * model.embedding_kernel.shape[1],
        hidden_layers=(),
        read_bytes=bytes_of_device((read.params, shared.head)),
        output_bytes=bytes_of_device(shared.head),
        observed_bytes=bytes_of_device(read.params),
        draft_length=draft_length,
        narrowest=narrowest,
    )


def share(target: LoadedModel, token_ids: Any) -> Shared:
    """Returns the parts of the target that a draft computes with.

    The embedding is shared. Only the output projection's rows for `token_ids` are copied.
    """
    ids = jnp.asarray(token_ids, jnp.int32)
    head = target.devices.to_all(picked(target.model.output_kernel, ids))
    return Shared(target.model.embedding_table, head, ids)
