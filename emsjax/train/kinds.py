"""The kinds of drafts that can be trained: their sizes, and what they learn."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.limits import HIDDEN_TRANSFER, JAKIRO, OWN_LAYERS
from emsjax.loading.load import LoadedModel
from emsjax.loading.trained_draft import share
from emsjax.models.hidden_transfer import TransferConfig
from emsjax.models.jakiro_head import JakiroConfig
from emsjax.models.recurrent_draft import RecurrentConfig, RecurrentDraft
from emsjax.models.state_map import StateMapConfig
from emsjax.train.batches import Split, all_batches, batch_number
from emsjax.train.fit import Fitting, Progress, Task, fit
from emsjax.train.inner_states import (
    check_trainable,
    fit_inner_states,
    state_map_config,
    transfer_config,
)
from emsjax.train.jakiro import check_single_layer, fit_jakiro, jakiro_config
from emsjax.train.loss import Texts, unroll
from emsjax.train.settings import Training

Config = RecurrentConfig | StateMapConfig | TransferConfig | JakiroConfig


def config_of(training: Training, target: LoadedModel) -> Config:
    """Returns the sizes of the draft.

    Raises:
      UserError: the target cannot have such a draft.
    """
    model, steps, layers = target.model, training.fitting.steps, training.layers
    width = training.width or model.intermediate_size
    if training.kind == JAKIRO:
        check_single_layer(layers)
        return jakiro_config(target, training.width)
    if training.kind == HIDDEN_TRANSFER:
        if training.width is not None:
            raise UserError(
                f"width is {training.width}, but hidden transfer has no feed-forward part; leave "
                "out --width"
            )
        check_trainable(target, steps)
        middle = (model.num_layers + 1) // 2
        return transfer_config(target, layers or middle, training.fitting.unroll)
    if training.kind == OWN_LAYERS:
        check_trainable(target, steps)
        # Without updates, a part that starts at zero stays there.
        return state_map_config(target, layers or 2, width if steps else 0)
    return RecurrentConfig(model.embedding_kernel.shape[1], width, layers or 2)


def fit_kind(
    config: Config,
    target: LoadedModel,
    token_ids: np.ndarray,
    prompts: Sequence[Sequence[int]],
    split: Split,
    fitting: Fitting,
    directory: Path,
    on_progress: Callable[[Progress], None],
) -> Any:
    """Trains a draft of any kind; `fit_inner_states` has the same arguments."""
    more = target, token_ids, prompts, split, fitting, directory, on_progress
    if isinstance(config, JakiroConfig):
        return fit_jakiro(config, *more)
    if isinstance(config, StateMapConfig | TransferConfig):
        return fit_inner_states(config, *more)
    task = _recurrent_task(target, token_ids, split, fitting)
    draft = RecurrentDraft(config, rngs=nnx.Rngs(fitting.seed))
    return fit(draft, task, fitting, directory, on_progress)


def _recurrent_task(
    target: LoadedModel, token_ids: np.ndarray, split: Split, fitting: Fitting
) -> Task:
    """Returns what a recurrent draft learns."""
    rows, width = fitting.rows, fitting.width

    def batch(number: int) -> Texts:
        return batch_number(split.learn, number, rows, width, fitting.seed)

    held_out = partial(all_batches, split.held_out, rows, width)
    return Task(share(target, token_ids), unroll, batch, held_out)
