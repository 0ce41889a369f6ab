"""The step costs an engine plans with: estimates until measuring pays off, then measurements.

Measuring takes some seconds, longer than a short run itself. So costs are measured before a long
run, or once many short runs add up to one, and kept on disk. A run whose end nobody knows is
interrupted once it has become a long one. The text an engine writes does not depend on its costs.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import jax

from emsjax.costs.hardware import hardware_like
from emsjax.costs.roofline import estimated_costs
from emsjax.costs.table import CostTable, Known
from emsjax.engine.drafter import passes_of
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

    def before_run(
        self,
        requests: Iterable[Request | None],
        when_empty: Callable[[Callable[[], None]], None] | None = None,
    ) -> Iterable[Request | None]:
        """Sets the engine's costs for a run, and measures them first if that pays off.

        Args:
          requests: the run's requests, of which some are taken to see whether it is long.
          when_empty: calls a function when no slot is live, see `Slots.when_empty`. With it, costs
            are also measured during the run, if it turns out to be long only then.

        Returns:
          The same requests.
        """
        table = self._open()
        if table is None or self._known is None:
            return requests
        tokens, requests = look_ahead(requests, self._enough())
        if tokens >= self._enough():
            self._measure(table)
        elif when_empty is not None:
            return self._counted(requests, when_empty)
        else:
            self._asked += tokens
        return requests

    def before_service(self) -> None:
        """Sets the engine's costs for a run without end, and measures them if they are unknown."""
        table = self._open()
        if table is not None:
            self._measure(table)

    def _open(self) -> CostTable | None:
        """Sets the engine's costs to what is known; returns the table if that is not settled."""
        if self._known is not None and self._known.settled:
            return None
        table = CostTable(self._engine, self._model)
        self._known = self._known or table.read() or Known(guessed_costs(self._engine), False, 0)
        self._engine.use_costs(self._known.costs)
        return None if self._known.settled else table

    def _enough(self) -> int:
        return ENOUGH_TOKENS * self._engine.num_slots - self._asked

    def _measure(self, table: CostTable) -> None:
        self._known, self._asked = table.measure(self._known), 0
        self._engine.use_costs(self._known.costs)

    def _counted(
        self,
        requests: Iterable[Request | None],
        when_empty: Callable[[Callable[[], None]], None],
    ) -> Iterator[Request | None]:
        """Passes requests on, and has the costs measured once there have been enough."""
        for request in requests:
            if request is not None:
                self._asked += _tokens_of(request)
                table = self._open() if self._enough() <= 0 else None
                if table is not None:
                    self._asked = 0
                    when_empty(partial(self._measure, table))
            yield request


def _tokens_of(request: Request) -> int:
    """Returns the most tokens that a request may write."""
    return request.max_tokens * request.params.n


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
            tokens += _tokens_of(seen[-1])
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
        passes=passes_of(drafter, engine.num_slots),
    )
    return without_prompts(costs, engine.ladder, drafter.draft_length)
