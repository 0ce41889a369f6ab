"""The training loop: AdamW on batches of texts, with orbax checkpoints."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from emsjax.errors import UserError, foreign
from emsjax.train.loss import Guessed, total

EVALUATED_LENGTH = 8  # draft tokens per draft in an evaluation


@dataclass(frozen=True)
class Fitting:
    """How a draft is trained.

    The first `one_ahead` of the updates draft one token from each position. That is faster, and
    later draft tokens build on the first one. The remaining updates draft `unroll` tokens.

    Attributes:
      steps: number of updates.
      rows: texts per batch.
      width: most tokens used of each text.
      unroll: tokens drafted from each position in the last part of the training.
      one_ahead: share of the updates that draft one token.
      learning_rate: highest learning rate; it warms up linearly and then follows a cosine.
      evaluate_every: updates between evaluations and checkpoints.
      seed: seed of the weights and of the order of texts.
    """

    steps: int = 2000
    rows: int = 8
    width: int = 160
    unroll: int = 4
    one_ahead: float = 0.6
    learning_rate: float = 2e-3
    evaluate_every: int = 200
    seed: int = 0


class Progress(NamedTuple):
    """The results of one evaluation.

    Attributes:
      step: number of updates so far.
      loss: mean training loss since the last evaluation; before the first update, the loss on the
        held-out texts.
      accepted: mean accepted tokens per step on held-out texts, for draft lengths 1, 2, ...
    """

    step: int
    loss: float
    accepted: list[float]


class Task(NamedTuple):
    """What a draft learns, and from what.

    Attributes:
      frozen: arrays of the target that the loss computes with.
      unroll: drafts so many tokens everywhere in a batch: (draft, frozen, batch, tokens) to the
        results for each position of the draft.
      batch_number: returns the batch of an update.
      held_out: returns the batches to evaluate on.
      starts_well: whether the draft is of use before the first update, so that it is evaluated.
      deepest: the most tokens that it drafts.
    """

    frozen: Any
    unroll: Callable[[Any, Any, Any, int], list[Guessed]]
    batch_number: Callable[[int], Any]
    held_out: Callable[[], Iterable[Any]]
    starts_well: bool = False
    deepest: int = EVALUATED_LENGTH


class _Learner(NamedTuple):
    """The state that each update changes."""

    params: nnx.State
    optimizer: Any


def fit(
    draft: nnx.Module,
    task: Task,
    fitting: Fitting,
    directory: Path,
    on_progress: Callable[[Progress], None],
) -> Any:
    """Trains a draft, continuing from the last checkpoint in `directory` if there is one.

    Args:
      draft: the draft before the first update.
      task: what it learns.
      fitting: training settings.
      directory: directory of the checkpoints.
      on_progress: called after each evaluation.

    Raises:
      UserError: the last checkpoint is damaged, or the loss is no finite number any more.
    """
    graphdef, params = nnx.split(draft)
    optimizer = _optimizer(fitting)
    update, judge = _programs(graphdef, optimizer, task)

    def evaluate(params: nnx.State) -> np.ndarray:
        batches = task.held_out()
        counts = [np.asarray(judge(params, task.frozen, batch), np.float64) for batch in batches]
        sums = np.sum(counts, axis=0)
        # Longer drafts than the deepest have no more accepted tokens.
        return np.pad(sums, ((0, EVALUATED_LENGTH - len(sums)), (0, 0)))

    with ocp.CheckpointManager(directory.absolute(), options=_KEEP) as checkpoints:
        learner, first = _latest(checkpoints, _Learner(params, optimizer.init(params)))
        losses: list[jax.Array] = []
        if task.starts_well and not first:
            sums = evaluate(learner.params)
            loss = float(sums[:, 2].sum() / max(sums[:, 1].sum(), 1))
            on_progress(Progress(0, loss, accepted_by_length(sums)))
        for step in range(first, fitting.steps):
            batch = task.batch_number(step)
            ahead = 1 if step < fitting.one_ahead * fitting.steps else fitting.unroll
            learner, value = update(learner, task.frozen, batch, ahead)
            losses.append(value)
            if (step + 1) % fitting.evaluate_every == 0 or step + 1 == fitting.steps:
                mean = float(np.mean(jax.device_get(losses)))
                sums = evaluate(learner.params)
                if not np.isfinite([mean, *sums.ravel()]).all():
                    raise UserError(
                        f"the training has diverged (at update {step + 1} the loss is no finite "
                        "number); give a smaller --learning-rate and another --output"
                    )
                on_progress(Progress(step + 1, mean, accepted_by_length(sums)))
                losses = []
                with foreign(f"{directory} cannot be written", "free space and run again"):
                    checkpoints.save(step + 1, args=ocp.args.StandardSave(_pure(learner)))
    return nnx.merge(graphdef, learner.params)


def _programs(
    graphdef: Any, optimizer: optax.GradientTransformation, task: Task
) -> tuple[Any, Any]:
    """Returns two compiled functions: one update, and the sums of one evaluation batch."""

    @partial(jax.jit, static_argnums=3, donate_argnums=0)
    def update(
        learner: _Learner, frozen: Any, batch: Any, ahead: int
    ) -> tuple[_Learner, jax.Array]:
        def loss(params: nnx.State) -> jax.Array:
            return total(task.unroll(nnx.merge(graphdef, params), frozen, batch, ahead))

        value, gradient = jax.value_and_grad(loss)(learner.params)
        # optax relies on promotion of types and ranks.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            change, state = optimizer.update(gradient, learner.optimizer, learner.params)
            return _Learner(optax.apply_updates(learner.params, change), state), value

    @jax.jit
    def judge(params: nnx.State, frozen: Any, batch: Any) -> jax.Array:
        length = min(task.deepest, EVALUATED_LENGTH)
        places = task.unroll(nnx.merge(graphdef, params), frozen, batch, length)
        return jnp.stack([jnp.stack([each.right, each.counted, each.loss]) for each in places])

    return update, judge


def accepted_by_length(sums: np.ndarray) -> list[float]:
    """Returns the mean number of accepted tokens per step for draft lengths 1 to k.

    Args:
      sums: float64[k, 3], for each position of the draft: drafts accepted up to and including it,
        draft tokens evaluated, and their loss, which does not matter here.
    """
    return np.cumsum(sums[:, 0] / np.maximum(sums[:, 1], 1)).tolist()


_KEEP = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)


def _optimizer(fitting: Fitting) -> optax.GradientTransformation:
    warm_up = min(200, fitting.steps // 10 + 1)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, fitting.learning_rate, warm_up, max(fitting.steps, warm_up + 1)
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98))


def _latest(checkpoints: ocp.CheckpointManager, fresh: _Learner) -> tuple[_Learner, int]:
    """Returns the last checkpoint's learner and step, or `fresh` and 0 if there is none."""
    step = checkpoints.latest_step()
    if step is None:
        return fresh, 0
    where = checkpoints.directory / str(step)
    with foreign(f"{where} is damaged", "delete it and run again"):
        found = checkpoints.restore(step, args=ocp.args.StandardRestore(_pure(fresh)))
    leaves = jax.tree.leaves(found)
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves), step


def _pure(learner: _Learner) -> dict[str, Any]:
    """Returns the learner as a plain list of arrays, in the order of its leaves."""
    return {"leaves": jax.tree.leaves(learner)}
