"""Loads model-based drafters: a smaller model, a published head, a draft trained by `train`."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from emsjax.drafters.draft_model import DraftModel
from emsjax.drafters.self_window import SelfWindow
from emsjax.engine.devices import ONE, Devices
from emsjax.errors import UserError, about, foreign
from emsjax.limits import MTP, OWN_LAYERS, RECURRENT, SELF_WINDOW
from emsjax.loading import head_kind
from emsjax.loading.draft_checkpoint import MANIFEST, is_for, read_manifest
from emsjax.loading.families import model_config
from emsjax.loading.fit import check_draft_fits
from emsjax.loading.head_load import PublishedHead, find_head, load_head
from emsjax.loading.load import LoadedModel, find_model, load_model, locate
from emsjax.loading.opened import OpenedModel
from emsjax.loading.trained_draft import Trained, load_trained
from emsjax.models.division import possible_shares

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
) -> DraftModel | PublishedHead | Trained | SelfWindow:
    """Loads a draft trained by `emsjax.train`, a published head, or a model of the same vocabulary.

    Args:
      draft: directory of a trained draft, directory or hub id of a published head, or anything that
        `load_model` accepts; "own-layers" for the draft of that kind that this package ships;
        "self-window" for the target itself, see `SelfWindow`; "mtp" for the MTP module in the
        target's checkpoint.
      target: the model to draft for.
      draft_length: k, the most draft tokens per step.
      dtype: dtype of a draft model, as for `load_model`; heads and trained drafts use the target's.
      quantize: "int8" for int8 weights in a draft model, as for `load_model`.
      narrowest: see `DraftModel.narrowest`.

    Raises:
      UserError: the draft cannot be found or loaded, does not match the target, or cannot be
        quantised.
    """
    if draft == SELF_WINDOW:
        return _self_window(target, draft_length, quantize, narrowest)
    if draft == OWN_LAYERS:
        draft = _own_layers_shipped(target)
    if draft == MTP:
        draft = _with_mtp(target)
    with foreign(f"draft {str(draft)[:100]!r} cannot be looked up", "name a directory"):
        directory = Path(draft).expanduser()
        trained = (directory / MANIFEST).is_file()
    if trained:
        if quantize is not None:
            raise UserError(
                f"draft {str(draft)!r} was trained for {target.name} and stays as it is; leave out "
                "draft_quantize"
            )
        return load_trained(directory, target, draft_length, narrowest)
    with about("draft_model", str(draft)):
        head = find_head(locate(draft))
        if head is None:
            divided = _is_divided(find_model(draft), target.devices, dtype, quantize)
            loaded = load_model(
                draft, dtype=dtype, quantize=quantize, devices=target.devices, divided=divided
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
        vocabulary=(target.devices if divided else ONE).vocabulary(target.model.vocab_size),
        exchanges=loaded.model.sizes.exchanges,
    )


def _is_divided(opened: OpenedModel, devices: Devices, dtype: str, quantize: str | None) -> bool:
    """Returns whether devices share a draft model as they share the target, and says so."""
    if devices.number == 1:
        return False
    divided = devices.number in possible_shares(model_config(opened.hf_config))
    check_draft_fits(opened, devices, dtype, quantize, divided=divided)
    how = "is divided among" if divided else "cannot be divided and is whole on each of"
    print(f"note: the draft model {opened.name} {how} {devices.number} devices", file=sys.stderr)
    return divided


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


def _self_window(
    target: LoadedModel, draft_length: int, quantize: str | None, narrowest: int
) -> SelfWindow:
    """Makes a drafter of the target itself."""
    if quantize is not None:
        raise UserError(
            "self-window drafts with the weights of the model itself; leave out draft_quantize"
        )
    graphdef, weights = nnx.split(target.model)
    sizes = target.model.sizes
    return SelfWindow(
        weights,
        partial(nnx.merge, graphdef),
        round(sizes.step_bytes(1)),
        draft_length=draft_length,
        narrowest=narrowest,
        vocabulary=target.devices.vocabulary(target.model.vocab_size),
        exchanges=sizes.exchanges,
    )


def _own_layers_shipped(target: LoadedModel) -> Path:
    shipped = shipped_draft(target, OWN_LAYERS)
    if shipped is None:
        raise UserError(
            f"emsjax comes with no draft of the own layers of {target.name}; make one with `python "
            "-m emsjax.train --kind own-layers` and give its directory"
        )
    return shipped


def _with_mtp(target: LoadedModel) -> Path:
    """Returns the directory of a target that comes with an MTP module."""
    head = None if target.path is None else find_head(target.path)
    if head is None or head.kind != head_kind.MTP:
        raise UserError(
            f"the checkpoint of {target.name} has no MTP module, as MiMo's have; use another draft "
            "model, or name the directory of a checkpoint that has the module"
        )
    return head.directory
