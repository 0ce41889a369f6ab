"""The training loop: AdamW on batches of texts, with orbax checkpoints."""

from collections.abc import Callable, Sequence
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

from emsjax.errors import foreign
from emsjax.models.recurrent_draft import RecurrentConfig, RecurrentDraft, Shared
from emsjax.train.batches import all_batches, batch_number
from emsjax.train.loss import Texts, total, unroll
from emsjax.train.record import Text

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
      loss: mean training loss since the last evaluation.
      accepted: mean accepted tokens per step on held-out texts, for draft lengths 1, 2, ...
    """

    step: int
    loss: float
    accepted: list[float]


class _Learner(NamedTuple):
    """The state that each update changes."""

    params: nnx.State
    optimizer: Any


def fit(
    config: RecurrentConfig,
    shared: Shared,
    learn: Sequence[Text],
    held_out: Sequence[Text],
    fitting: Fitting,
    directory: Path,
    on_progress: Callable[[Progress], None],
) -> RecurrentDraft:
    """Trains a draft, continuing from the last checkpoint in `directory` if there is one.

    Args:
      config: sizes of the draft.
      shared: the parts of the target that the draft computes with.
      learn: texts to train on.
      held_out: texts to evaluate on.
      fitting: training settings.
      directory: directory of the checkpoints.
      on_progress: called after each evaluation.

    Raises:
      UserError: the last checkpoint is damaged.
    """
    graphdef, params = nnx.split(RecurrentDraft(config, rngs=nnx.Rngs(fitting.seed)))
    optimizer = _optimizer(fitting)
    update, judge = _programs(graphdef, optimizer)

    def evaluate(params: nnx.State) -> list[float]:
        batches = all_batches(held_out, fitting.rows, fitting.width)
        sums = sum(np.asarray(judge(params, shared, batch), np.float64) for batch in batches)
        return accepted_by_length(sums)  # type: ignore[arg-type]

    with ocp.CheckpointManager(directory.absolute(), options=_KEEP) as checkpoints:
        learner, first = _latest(checkpoints, _Learner(params, optimizer.init(params)))
        losses: list[jax.Array] = []
        for step in range(first, fitting.steps):
            batch = batch_number(learn, step, fitting.rows, fitting.width, fitting.seed)
            ahead = 1 if step < fitting.one_ahead * fitting.steps else fitting.unroll
            learner, loss = update(learner, shared, batch, ahead)
            losses.append(loss)
            if (step + 1) % fitting.evaluate_every == 0 or step + 1 == fitting.steps:
                mean = float(np.mean(jax.device_get(losses)))
                on_progress(Progress(step + 1, mean, evaluate(learner.params)))
                losses = []
                with foreign(f"{directory} cannot be written", "free space and run again"):
                    checkpoints.save(step + 1, args=ocp.args.StandardSave(_pure(learner)))
    return nnx.merge(graphdef, learner.params)


def _programs(graphdef: Any, optimizer: optax.GradientTransformation) -> tuple[Any, Any]:
    """Returns two compiled functions: one update, and the counts of one evaluation batch."""

    @partial(jax.jit, static_argnums=3, donate_argnums=0)
    def update(
        learner: _Learner, shared: Shared, batch: Texts, ahead: int
    ) -> tuple[_Learner, jax.Array]:
        def loss(params: nnx.State) -> jax.Array:
            return total(unroll(nnx.merge(graphdef, params), shared, batch, ahead))

        value, gradient = jax.value_and_grad(loss)(learner.params)
        # optax relies on promotion of types and ranks.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            change, state = optimizer.update(gradient, learner.optimizer, learner.params)
            return _Learner(optax.apply_updates(learner.params, change), state), value

    @jax.jit
    def judge(params: nnx.State, shared: Shared, batch: Texts) -> jax.Array:
        places = unroll(nnx.merge(graphdef, params), shared, batch, EVALUATED_LENGTH)
        return jnp.stack([jnp.stack([each.right, each.counted]) for each in places])

    return update, judge


def accepted_by_length(sums: np.ndarray) -> list[float]:
    """Returns the mean number of accepted tokens per step for draft lengths 1 to k.

    Args:
      sums: float64[k, 2], for each position of the draft: drafts accepted up to and including it,
        and draft tokens evaluated.
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
