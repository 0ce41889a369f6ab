"""Trains a Jakiro head, see `models.jakiro_head`."""

from typing import Any

from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.load import LoadedModel
from emsjax.loading.trained_draft import share
from emsjax.models.jakiro_head import JakiroConfig, JakiroHead
from emsjax.train.fit import Task
from emsjax.train.head_loss import unroll_head
from emsjax.train.lesson import Lesson
from emsjax.train.state_loss import Frozen
from emsjax.train.whole_texts import WholeTexts


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


def jakiro_task(config: JakiroConfig, lesson: Lesson) -> tuple[JakiroHead, Task]:
    """Returns a head with random weights, and what it learns."""
    target_def, params = nnx.split(lesson.target.model)

    def unroll(head: JakiroHead, frozen: Frozen, texts: WholeTexts, steps: int) -> list:
        model = nnx.merge(target_def, frozen.target)
        return unroll_head(head, model, frozen.shared, texts, steps, lesson.fitting.width)

    frozen = Frozen(share(lesson.target, lesson.token_ids), params)
    head = JakiroHead(config, rngs=nnx.Rngs(lesson.fitting.seed))
    return head, Task(frozen, unroll, lesson.whole_batch, lesson.held_out)
