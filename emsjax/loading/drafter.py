"""Drafters that compute: a smaller model, or a draft trained for the target."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.drafters.draft_model import DraftModel
from emsjax.drafters.recurrent import Recurrent
from emsjax.errors import UserError
from emsjax.loading.draft_checkpoint import MANIFEST, is_for, read_draft, read_manifest
from emsjax.loading.load import LoadedModel, load_model
from emsjax.models.recurrent_draft import Shared

_SHIPPED = Path(__file__).parents[1] / "drafts"


def shipped_draft(target: LoadedModel) -> Path | None:
    """The draft that comes with this package for the target, if there is one."""
    for file in sorted(_SHIPPED.glob(f"*/{MANIFEST}")):
        if is_for(read_manifest(file.parent), target.model.embedding_kernel):
            return file.parent
    return None


def load_drafter(
    draft: str | Path, target: LoadedModel, draft_length: int, *, dtype: str, narrowest: int
) -> DraftModel | Recurrent:
    """A drafter from a draft trained by `emsjax.train`, or from any model of the same vocabulary.

    Args:
      draft: a directory, or what `load_model` takes.
      target: the model it drafts for.
      draft_length: k.
      dtype: of a draft model, as for `load_model`.
      narrowest: the fewest rows, beside one alone, worth a shape of their own.

    Raises:
      UserError: it cannot be had or loaded, or does not fit the target.
    """
    if (Path(draft).expanduser() / MANIFEST).is_file():
        return _recurrent(Path(draft).expanduser(), target, draft_length)
    loaded = load_model(draft, dtype=dtype)
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
    """Refuses a draft model whose tokens mean something else than the target's.

    Raises:
      UserError: names the first difference.
    """
    if draft.tokenizer is None or target.tokenizer is None:
        sizes = draft.model.vocab_size, target.model.vocab_size
        if sizes[0] == sizes[1]:
            return
        raise UserError(
            f"the draft model {draft.name} has {sizes[0]} tokens and {target.name} has {sizes[1]}: "
            "a draft model needs the vocabulary of its target"
        )
    ours, theirs = (_by_id(m.tokenizer) for m in (target, draft))
    for token in sorted(ours.keys() | theirs.keys()):  # there may be gaps
        if ours.get(token) != theirs.get(token):
            raise UserError(
                f"the draft model {draft.name} has another vocabulary than {target.name}: token "
                f"{token} is {_shown(theirs.get(token))} there and {_shown(ours.get(token))} here; "
                "choose a draft model of the same family"
            )


def _by_id(tokenizer: Any) -> dict[int, str]:
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
            f"smaller than {target.name} ({ours / 1e6:.0f} million): drafting will not pay",
            file=sys.stderr,
        )


def _recurrent(directory: Path, target: LoadedModel, draft_length: int) -> Recurrent:
    manifest = read_manifest(directory)
    embedding = target.model.embedding_kernel
    if not is_for(manifest, embedding):
        raise UserError(
            f"the draft {directory} was trained for {manifest.target}, not for {target.name}: "
            "train one for it with `python -m emsjax.train`"
        )
    draft, token_ids = read_draft(directory, embedding.dtype)
    if token_ids[-1] >= len(embedding):
        raise UserError(f"the draft {directory} is damaged (it knows tokens that are none)")
    graphdef, params = nnx.split(draft)
    return Recurrent(
        name=f"{directory.name} {manifest.sizes}",
        weights=(jax.device_put(params), share(target, token_ids)),
        merge=partial(nnx.merge, graphdef),
        vocab_size=target.model.vocab_size,
        hidden_size=embedding.shape[1],
        draft_length=draft_length,
    )


def share(target: LoadedModel, token_ids: Any) -> Shared:
    """What a draft has from its target; only the rows of the output projection are copied."""
    ids = jnp.asarray(token_ids, jnp.int32)
    return Shared(target.model.embedding_kernel, target.model.output_kernel[ids], ids)
