"""An engine whose steps leave a record on the device, so that thousands of steps cost seconds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.engine import Engine
from emsjax.engine.loop import step
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import StepCosts

# Steps of a call, and of the record that it returns.
STEPS = 32

Note = Callable[[DecodeState, DecodeState], Any]


class LoggedEngine(Engine):
    """An engine that reports a few arrays of every step.

    Attributes:
      log: what `note` returned for each step so far, as a pytree of numpy arrays [steps, ...].
    """

    def __init__(self, *arguments: Any, note: Note, **options: Any):
        """Takes the arguments of `Engine`, and what to note of the states around a step."""
        super().__init__(*arguments, **options)
        self.log: list[Any] = []

        def many(
            params: nnx.State,
            weights: Any,
            costs: StepCosts | None,
            state: DecodeState,
            max_steps: jax.Array,
            others_wait: jax.Array,
        ) -> tuple[DecodeState, jax.Array, Any]:
            def body(carry: Any) -> Any:
                before, count, log, _ = carry
                after = step(self.setup(params), weights, costs, before, others_wait)
                noted = note(before, after)
                log = jax.tree.map(lambda rows, row: rows.at[count].set(row), log, noted)
                ended = before.live & ~after.live & others_wait
                begun = (before.stats.target_steps == 0) & (after.stats.target_steps == 1)
                return after, count + 1, log, (ended | (before.live & begun)).any()

            def goes_on(carry: Any) -> jax.Array:
                now, count, _, called = carry
                return now.live.any() & (count < jnp.minimum(max_steps, STEPS)) & ~called

            shapes = jax.eval_shape(note, state, state)
            empty = jax.tree.map(lambda x: jnp.zeros((STEPS, *x.shape), x.dtype), shapes)
            start = state, jnp.zeros((), jnp.int32), empty, jnp.zeros((), jnp.bool)
            with jax.default_matmul_precision(self.precision):
                return jax.lax.while_loop(goes_on, body, start)[:3]

        self._many = jax.jit(many, donate_argnums=3)

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """Steps until the host has something to do, see `loop.run`."""
        limits = np.int32(max_steps), np.bool(others_wait)
        state, count, log = self._many(self.params, self._weights, self.costs, state, *limits)
        done = int(count)
        self.log.append(jax.tree.map(lambda rows: np.asarray(rows)[:done], log))
        return state

    def take_log(self) -> Any:
        """Returns what was noted since the last call, arrays [steps, ...]."""
        log, self.log = self.log, []
        return jax.tree.map(lambda *parts: np.concatenate(parts), *log)
