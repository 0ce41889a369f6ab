"""A recurrent draft that a training run goes on from, instead of starting from nothing."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.array_digest import array_digest
from emsjax.errors import UserError, check_name, foreign, short
from emsjax.limits import RECURRENT
from emsjax.loading.draft_checkpoint import MANIFEST, read_draft, read_manifest
from emsjax.loading.drafter import shipped_draft
from emsjax.loading.load import LoadedModel
from emsjax.loading.trained_draft import check_ids, check_target
from emsjax.models.recurrent_draft import RecurrentDraft
from emsjax.train.settings import DRAFT, SHIPPED, Training


@dataclass(frozen=True)
class Start:
    """A draft that was trained before.

    Attributes:
      draft: the draft, in float32.
      token_ids: int32[Vd], the tokens that it can propose.
      trained_on: what it learnt from.
    """

    draft: RecurrentDraft
    token_ids: np.ndarray
    trained_on: str

    def digest(self) -> str:
        """Returns a text that differs for other parameters and other tokens."""
        return array_digest([self.token_ids, *jax.tree.leaves(nnx.state(self.draft))])


def check_start(training: Training) -> None:
    """Checks what can be known about the draft to start from before the target is loaded.

    Raises:
      UserError: its name is empty, drafts of this kind cannot be trained further, or the run would
        overwrite it.
    """
    name = training.start_from
    if name is None:
        return
    check_name("start_from", name)
    if training.kind != RECURRENT:
        raise UserError(
            f"kind is {training.kind}, but only {RECURRENT} drafts can be trained further; leave "
            "out --start-from"
        )
    if name != SHIPPED and _path(name).resolve() == (training.output / DRAFT).resolve():
        raise UserError(
            f"the draft {name} is where this run writes its own draft; give another --output"
        )


def read_start(name: str, target: LoadedModel) -> Start:
    """Reads the draft to go on from.

    Args:
      name: its directory, or "shipped" for the one that this package ships for the target.
      target: the model that it must have been trained for.

    Raises:
      UserError: there is no such draft, it is damaged, of another kind or for another target.
    """
    directory = _directory(name, target)
    manifest = read_manifest(directory)
    check_target(directory, manifest, target)
    if manifest.kind != RECURRENT:
        raise UserError(
            f"the draft {directory} is of the kind {manifest.kind}, but only {RECURRENT} drafts "
            "can be trained further; leave out --start-from"
        )
    draft, token_ids = read_draft(directory, jnp.float32)
    check_ids(directory, token_ids, target)
    return Start(draft, token_ids, manifest.trained_on)


def _directory(name: str, target: LoadedModel) -> Path:
    if name == SHIPPED:
        found = shipped_draft(target)
        if found is None:
            raise UserError(
                f"emsjax comes with no draft for {target.name}; leave out --start-from, or give "
                "the directory of a draft"
            )
        return found
    directory = _path(name)
    if not (directory / MANIFEST).is_file():
        raise UserError(
            f"{name} is not the directory of a trained draft, because it has no {MANIFEST}; give "
            f"one that `emsjax train` wrote, or {SHIPPED}"
        )
    return directory


def _path(name: str) -> Path:
    """Returns where a draft should be, after checking that this can be looked up."""
    with foreign(f"start_from {short(name)} cannot be looked up", "give the directory of a draft"):
        directory = Path(name).expanduser()
        # No home, a name that is too long, or a directory that may not be read.
        (directory / MANIFEST).is_file()
        return directory
