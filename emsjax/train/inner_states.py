"""Trains drafts that run the target's own last layers on guesses of their input."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.load import LoadedModel
from emsjax.loading.trained_draft import share
from emsjax.models.hidden_transfer import HiddenTransfer, TransferConfig
from emsjax.models.state_map import StateMap, StateMapConfig
from emsjax.train.batches import Split
from emsjax.train.fit import EVALUATED_LENGTH, Fitting, Progress, Task, fit
from emsjax.train.least_squares import pairs, pairs_ahead, solve
from emsjax.train.state_loss import Frozen, Guess, unroll_states
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
    return StateMapConfig(**_sizes(target, layers), width=width)


def transfer_config(target: LoadedModel, layers: int, places: int) -> TransferConfig:
    """Returns the sizes of hidden transfer into the target's last layers.

    Args:
      target: the model to draft for.
      layers: how many of its layers run.
      places: K, how many tokens are drafted.

    Raises:
      UserError: the target does not have that many layers.
    """
    return TransferConfig(**_sizes(target, layers), places=places)


def _sizes(target: LoadedModel, layers: int) -> dict[str, int]:
    model = target.model
    if layers >= model.num_layers:
        raise UserError(
            f"layers is {layers}, but {target.name} has {model.num_layers} layers, of which the "
            "first must stay out of the draft; give fewer --layers"
        )
    return {
        "hidden_size": model.hidden_size,
        "embedding_size": model.embedding_kernel.shape[1],
        "vocab_size": model.vocab_size,
        "num_layers": model.num_layers,
        "first_layer": model.num_layers - layers,
    }


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


def fit_inner_states(
    config: StateMapConfig | TransferConfig,
    target: LoadedModel,
    token_ids: np.ndarray,
    prompts: Sequence[Sequence[int]],
    split: Split,
    fitting: Fitting,
    directory: Path,
    on_progress: Callable[[Progress], None],
) -> StateMap | HiddenTransfer:
    """Solves for the linear part of a guess, and trains all of it for `fitting.steps` updates.

    Args:
      config: its sizes.
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

    def unroll(guess: Guess, frozen: Frozen, texts: WholeTexts, steps: int) -> list:
        model = nnx.merge(target_def, frozen.target)
        return unroll_states(guess, model, frozen.shared, texts, steps, longest)

    guess: Any
    where: dict[str, Any] = {"layer": config.first_layer, "places": longest}
    if isinstance(config, StateMapConfig):
        guess, deepest = StateMap(config, rngs=nnx.Rngs(fitting.seed)), EVALUATED_LENGTH
        learnt = partial(pairs, **where)
    else:
        guess, deepest = HiddenTransfer(config, rngs=nnx.Rngs(fitting.seed)), config.places
        learnt = partial(pairs_ahead, **where, ahead=config.places)
    batches = all_whole_batches(split.learn, prompts, rows, longest)
    solve(guess.linear, learnt, target_def, frozen, batches)
    task = Task(
        frozen,
        unroll,
        partial(whole_batch_of_step, split.learn, prompts, fitting),
        lambda: all_whole_batches(split.held_out, prompts, rows, longest),
        starts_well=True,
        deepest=deepest,
    )
    return fit(guess, task, fitting, directory, on_progress)


def whole_batch_of_step(
    texts: Sequence, prompts: Sequence[Sequence[int]], fitting: Fitting, number: int
) -> WholeTexts:
    """Returns the batch of whole texts of an update, see `Task.batch_number`."""
    return whole_batch_number(texts, prompts, number, fitting.rows, fitting.width, fitting.seed)
