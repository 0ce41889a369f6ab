"""Trains a state map for a draft with the target's own last layers."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.drafter import share
from emsjax.loading.load import LoadedModel
from emsjax.models.state_map import StateMap, StateMapConfig
from emsjax.train.batches import Split
from emsjax.train.fit import Fitting, Progress, Task, fit
from emsjax.train.least_squares import solve
from emsjax.train.state_loss import Frozen, unroll_states
from emsjax.train.whole_texts import WholeTexts, all_whole_batches, whole_batch_number


def state_map_config(target: LoadedModel, layers: int, width: int) -> StateMapConfig:
    """Returns the sizes of a map for the target's last layers.

    Args:
      target: the model to draft for.
      layers: how many of its layers run.
      width: of the feed-forward part; 0 for none.

    Raises:
      UserError: the target does not have that many layers.
    """
    model = target.model
    if layers >= model.num_layers:
        raise UserError(
            f"layers is {layers}, but {target.name} has {model.num_layers} layers, of which the "
            "first must stay out of the draft; give fewer --layers"
        )
    return StateMapConfig(
        hidden_size=model.hidden_size,
        embedding_size=model.embedding_kernel.shape[1],
        vocab_size=model.vocab_size,
        num_layers=model.num_layers,
        first_layer=model.num_layers - layers,
        width=width,
    )


def check_trainable(target: LoadedModel, steps: int) -> None:
    """Checks that the target's layers have derivatives, if they are needed.

    Raises:
      UserError: they have none.
    """
    if steps and target.model.sizes.expert_bytes:
        raise UserError(
            f"{steps} updates go through the layers of {target.name}, but layers with experts have "
            "no derivatives; leave out --steps"
        )


def fit_own_layers(
    config: StateMapConfig,
    target: LoadedModel,
    token_ids: np.ndarray,
    prompts: Sequence[Sequence[int]],
    split: Split,
    fitting: Fitting,
    directory: Path,
    on_progress: Callable[[Progress], None],
) -> StateMap:
    """Solves for the linear part of a map, and trains all of it for `fitting.steps` updates.

    Args:
      config: sizes of the map.
      target: the model to draft for.
      token_ids: int32[Vd], the tokens that the draft can propose.
      prompts: token ids of each prompt.
      split: the texts.
      fitting: training settings.
      directory: directory of the checkpoints.
      on_progress: called after each evaluation; the first is that of the solution.
    """
    target_def, params = nnx.split(target.model)
    frozen = Frozen(share(target, token_ids), params)
    rows, longest = fitting.rows, fitting.width

    def unroll(state_map: StateMap, frozen: Frozen, texts: WholeTexts, steps: int) -> list:
        model = nnx.merge(target_def, frozen.target)
        return unroll_states(state_map, model, frozen.shared, texts, steps, longest)

    state_map = StateMap(config, rngs=nnx.Rngs(fitting.seed))
    batches = all_whole_batches(split.learn, prompts, rows, longest)
    solve(state_map, target_def, frozen, batches, longest)
    task = Task(
        frozen,
        unroll,
        partial(_batch, split.learn, prompts, fitting),
        lambda: all_whole_batches(split.held_out, prompts, rows, longest),
        starts_well=True,
    )
    return fit(state_map, task, fitting, directory, on_progress)


def _batch(
    texts: Sequence, prompts: Sequence[Sequence[int]], fitting: Fitting, number: int
) -> WholeTexts:
    return whole_batch_number(texts, prompts, number, fitting.rows, fitting.width, fitting.seed)
