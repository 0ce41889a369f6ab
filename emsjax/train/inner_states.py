"""Trains drafts that run the target's own last layers on guesses of their input."""

from functools import partial
from typing import Any

from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.load import LoadedModel
from emsjax.loading.trained_draft import share
from emsjax.models.hidden_transfer import HiddenTransfer, TransferConfig
from emsjax.models.state_map import StateMap, StateMapConfig
from emsjax.train.fit import EVALUATED_LENGTH, Task
from emsjax.train.least_squares import pairs, pairs_ahead, solve
from emsjax.train.lesson import Lesson
from emsjax.train.state_loss import Frozen, Guess, unroll_states
from emsjax.train.whole_texts import WholeTexts


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


def _check_room(places: int, lesson: Lesson) -> None:
    """Checks that a draft of `places` tokens has room in a text, or there is nothing to learn from.

    Raises:
      UserError: it has not.
    """
    longest = max(len(text.tokens) for text in lesson.split.learn)
    if min(longest, lesson.fitting.width) < places:
        raise UserError(
            f"no text has room for a draft of {places} tokens, because the longest has {longest}; "
            "give a smaller --unroll or more --max-tokens, and another --output"
        )


def inner_states_task(
    config: StateMapConfig | TransferConfig, lesson: Lesson
) -> tuple[StateMap | HiddenTransfer, Task]:
    """Returns a guess whose linear part is solved for, and what it learns by updates.

    Raises:
      UserError: the texts are too short.
    """
    target_def, params = nnx.split(lesson.target.model)
    frozen = Frozen(share(lesson.target, lesson.token_ids), params)
    longest, seed = lesson.fitting.width, lesson.fitting.seed

    def unroll(guess: Guess, frozen: Frozen, texts: WholeTexts, steps: int) -> list:
        model = nnx.merge(target_def, frozen.target)
        return unroll_states(guess, model, frozen.shared, texts, steps, longest)

    guess: Any
    where: dict[str, Any] = {"layer": config.first_layer, "places": longest}
    if isinstance(config, StateMapConfig):
        guess, deepest = StateMap(config, rngs=nnx.Rngs(seed)), EVALUATED_LENGTH
        learnt = partial(pairs, **where)
    else:
        _check_room(config.places, lesson)
        guess, deepest = HiddenTransfer(config, rngs=nnx.Rngs(seed)), config.places
        learnt = partial(pairs_ahead, **where, ahead=config.places)
    solve(guess.linear, learnt, target_def, frozen, lesson.whole_batches(lesson.split.learn))
    task = Task(
        frozen,
        unroll,
        lesson.whole_batch,
        lesson.held_out,
        starts_well=True,
        deepest=deepest,
    )
    return guess, task
