"""What an engine plans with: estimated costs of its steps, until measuring them pays.

Measuring takes some seconds, in which a short run would be over. It is done for runs that are long,
or once many short ones came together, and kept on disk. Whichever costs it plans with, an engine
writes the same text.
"""

from collections.abc import Iterable, Iterator

import jax

from emsjax.costs.hardware import hardware_like
from emsjax.costs.roofline import estimated_costs
from emsjax.costs.table import CostTable, Known
from emsjax.engine.engine import Engine
from emsjax.engine.worth import StepCosts, without_prompts
from emsjax.requests.request import Request

# Tokens of each slot for which it is worth to measure: up to some hundreds of steps are timed, and
# what they tell may save a few steps in a hundred, in this run and in later ones.
ENOUGH_TOKENS = 2000


class Pricing:
    """Keeps the costs of an engine."""

    def __init__(self, engine: Engine, model: str):
        """Looks at nothing yet.

        Args:
          engine: whose `costs` are kept.
          model: the name under which they are on disk.
        """
        self._engine, self._model = engine, model
        self._known: Known | None = None
        self._asked = 0

    def before_run(self, requests: Iterable[Request | None]) -> Iterable[Request | None]:
        """Prices the engine's steps for a run.

        Args:
          requests: of the run; some are taken to see whether it is long.

        Returns:
          The same requests.
        """
        if self._known is not None and self._known.settled:
            return requests
        table = CostTable(self._engine, self._model)
        self._known = self._known or table.read() or Known(guessed_costs(self._engine), False, 0)
        if not self._known.settled:
            enough = ENOUGH_TOKENS * self._engine.num_slots - self._asked
            tokens, requests = look_ahead(requests, enough)
            self._asked += tokens
            if tokens >= enough:
                self._known, self._asked = table.measure(self._known), 0
        self._engine.use_costs(self._known.costs)
        return requests


def look_ahead(
    requests: Iterable[Request | None], enough: int
) -> tuple[int, Iterator[Request | None]]:
    """How many tokens are asked for, counted as far as `enough` or what is there by now.

    Returns:
      The count, and all requests from the first; an error in taking one is raised in its place.
    """
    coming = iter(requests)
    seen: list[Request | None] = []
    tokens, error = 0, None
    try:
        while tokens < enough:
            seen.append(next(coming))
            if seen[-1] is None:
                break
            tokens += seen[-1].max_tokens * seen[-1].params.n
    except StopIteration:
        pass
    except Exception as raised:
        error = raised
    return tokens, _again(seen, error, coming)


def _again(
    seen: list[Request | None], error: Exception | None, coming: Iterator[Request | None]
) -> Iterator[Request | None]:
    yield from seen
    if error is not None:
        raise error
    yield from coming


def guessed_costs(engine: Engine) -> StepCosts:
    """What the engine's steps should take by the bytes they read and the products they need."""
    device, model = jax.devices()[0], engine.setup(engine.params).model
    drafter = engine.drafter
    costs = estimated_costs(
        model.sizes,
        hardware_like(device.platform, device.device_kind),
        engine.ladder,
        num_slots=engine.num_slots,
        draft_length=drafter.draft_length,
        drafter_bytes=drafter.read_bytes,
    )
    return without_prompts(costs, engine.ladder, drafter.draft_length)
