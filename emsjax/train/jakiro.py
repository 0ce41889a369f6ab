"""Trains a Jakiro head, see `models.jakiro_head`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.load import LoadedModel
from emsjax.loading.trained_draft import share
from emsjax.models.jakiro_head import JakiroConfig, JakiroHead
from emsjax.train.batches import Split
from emsjax.train.fit import Fitting, Progress, Task, fit
from emsjax.train.head_loss import unroll_head
from emsjax.train.inner_states import whole_batch_of_step
from emsjax.train.state_loss import Frozen
from emsjax.train.whole_texts import WholeTexts, all_whole_batches


def jakiro_config(target: LoadedModel, width: int | None) -> JakiroConfig:
    """Returns the sizes of a head with the target's heads.

    Args:
      target: the model to draft for.
      width: of each expert; None for that of the states, as in Jakiro's own heads.
    """
    model: Any = target.model
    config, size = model.config, model.embedding_kernel.shape[1]
    return JakiroConfig(
        hidden_size=size,
        intermediate_size=width or size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
    )


def check_single_layer(layers: int | None) -> None:
    """Checks that no other number of layers was asked for.

    Raises:
      UserError: it was.
    """
    if layers not in (None, 1):
        raise UserError(f"layers is {layers}, but a Jakiro head has one layer; leave out --layers")


def fit_jakiro(
    config: JakiroConfig,
    target: LoadedModel,
    token_ids: np.ndarray,
    prompts: Sequence[Sequence[int]],
    split: Split,
    fitting: Fitting,
    directory: Path,
    on_progress: Callable[[Progress], None],
) -> Any:
    """Trains a head for `fitting.steps` updates; `fit_inner_states` has the same arguments."""
    target_def, params = nnx.split(target.model)
    rows, longest = fitting.rows, fitting.width

    def unroll(head: JakiroHead, frozen: Frozen, texts: WholeTexts, steps: int) -> list:
        model = nnx.merge(target_def, frozen.target)
        return unroll_head(head, model, frozen.shared, texts, steps, longest)

    task = Task(
        Frozen(share(target, token_ids), params),
        unroll,
        partial(whole_batch_of_step, split.learn, prompts, fitting),
        lambda: all_whole_batches(split.held_out, prompts, rows, longest),
    )
    head = JakiroHead(config, rngs=nnx.Rngs(fitting.seed))
    return fit(head, task, fitting, directory, on_progress)
