"""The kinds of drafts that can be trained: their sizes, and what they learn."""

from functools import partial

from flax import nnx

from emsjax.errors import UserError
from emsjax.limits import HIDDEN_TRANSFER, JAKIRO, OWN_LAYERS
from emsjax.loading.load import LoadedModel
from emsjax.loading.trained_draft import share
from emsjax.models.hidden_transfer import TransferConfig
from emsjax.models.jakiro_head import JakiroConfig
from emsjax.models.recurrent_draft import RecurrentConfig, RecurrentDraft
from emsjax.models.state_map import StateMapConfig
from emsjax.train.batches import all_batches, batch_number
from emsjax.train.fit import Task
from emsjax.train.inner_states import (
    check_trainable,
    inner_states_task,
    state_map_config,
    transfer_config,
)
from emsjax.train.jakiro import check_single_layer, jakiro_config, jakiro_task
from emsjax.train.lesson import Lesson
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


def task_of(
    config: Config, lesson: Lesson, start: RecurrentDraft | None
) -> tuple[nnx.Module, Task]:
    """Returns a draft of any kind before the first update, and what it learns.

    Args:
      config: the sizes of the draft.
      lesson: what it is trained on.
      start: the recurrent draft to go on from; None for a new draft.
    """
    if isinstance(config, JakiroConfig):
        return jakiro_task(config, lesson)
    if isinstance(config, StateMapConfig | TransferConfig):
        return inner_states_task(config, lesson)
    draft = start or RecurrentDraft(config, rngs=nnx.Rngs(lesson.fitting.seed))
    return draft, _recurrent_task(lesson, starts_well=start is not None)


def _recurrent_task(lesson: Lesson, starts_well: bool) -> Task:
    """Returns what a recurrent draft learns: it reads no prompts."""
    split, fitting = lesson.split, lesson.fitting
    rows, width = fitting.rows, fitting.width

    def batch(number: int) -> Texts:
        return batch_number(split.learn, number, rows, width, fitting.seed)

    held_out = partial(all_batches, split.held_out, rows, width)
    shared = share(lesson.target, lesson.token_ids)
    return Task(shared, unroll, batch, held_out, starts_well)
