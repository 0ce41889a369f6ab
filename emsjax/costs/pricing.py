"""The step costs an engine plans with: estimates until measuring pays off, then measurements.

Measuring takes some seconds, longer than a short run itself. So costs are measured before a long
run, or once many short runs add up to one, and kept on disk. The text an engine writes does not
depend on its costs.
"""

from collections.abc import Iterable, Iterator

import jax

from emsjax.costs.hardware import hardware_like
from emsjax.costs.roofline import estimated_costs
from emsjax.costs.table import CostTable, Known
from emsjax.engine.engine import Engine
from emsjax.engine.step_costs import StepCosts, without_prompts
from emsjax.requests.request import Request

# Tokens per slot from which measuring pays off: up to some hundreds of steps are timed, and the
# result may save a few steps in a hundred, in this run and in later ones.
ENOUGH_TOKENS = 2000


class Pricing:
    """Sets and improves the costs of an engine."""

    def __init__(self, engine: Engine, model: str):
        """Reads and measures nothing yet.

        Args:
          engine: its `costs` are set before each run.
          model: the name under which its costs are kept on disk.
        """
        self._engine, self._model = engine, model
        self._known: Known | None = None
        self._asked = 0

    def before_run(self, requests: Iterable[Request | None]) -> Iterable[Request | None]:
        """Sets the engine's costs for a run, and measures them first if that pays off.

        Args:
          requests: the run's requests, of which some are taken to see whether it is long.

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
    """Counts the tokens that the first requests may write.

    Stops at `enough` tokens, at the end of the requests, or at a None, which says that the next
    request is not available yet.

    Returns:
      The count, and all requests from the first. An error in taking a request is raised when the
      iterator comes to it.
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
    """Estimates the costs of the engine's steps from the bytes they read and their products."""
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
