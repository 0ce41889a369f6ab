"""Keeps step costs on disk, so that they are measured once for a model, a device and a batch."""

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from emsjax.costs.measure import measure_costs
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.step_costs import StepCosts
from emsjax.errors import reason
from emsjax.host.cache import cache_dir
from emsjax.host.device import device_name
from emsjax.host.files import replace_text
from emsjax.host.json_text import to_json
from emsjax.host.locks import alone, lock_of
from emsjax.version import __version__

# Measurements on a busy machine are averaged, and trusted from this many on.
ENOUGH_LOOKS = 4

# Raise it when the kernels change in speed between two versions.
_KERNELS = 6


class Known(NamedTuple):
    """The known costs of an engine's steps.

    Attributes:
      costs: of the engine's ladder.
      settled: True if they were measured on a quiet machine, or often enough on a busy one; False
        if they are estimates or need further measurements.
      looks: how often they were measured; 0 for estimates.
    """

    costs: StepCosts
    settled: bool
    looks: int

    def with_measurement(self, newer: "Known") -> "Known":
        """Adds a measurement: the mean of all of them, or a settled one alone."""
        if newer.settled or not self.looks:
            return newer
        looks = self.looks + newer.looks
        share = np.float32(newer.looks / looks)
        costs: StepCosts = jax.tree.map(
            lambda a, b: a * (1 - share) + b * share, self.costs, newer.costs
        )
        return Known(costs, looks >= ENOUGH_LOOKS, looks)


Say = Callable[[str], None]


def known_costs(engine: Engine, model: str, say: Say | None = None) -> StepCosts:
    """Returns the costs of the engine's steps, and measures them first if they are not settled.

    Args:
      engine: the engine; measuring compiles its programs.
      model: the name under which the costs are kept.
      say: called with a message if the table is damaged; prints to standard error by default.
    """
    table = CostTable(engine, model, say)
    known = table.read()
    return known.costs if known is not None and known.settled else table.measure(known).costs


class CostTable:
    """The file that keeps the costs of an engine's steps."""

    def __init__(self, engine: Engine, model: str, say: Say | None = None):
        """See `known_costs`."""
        self._engine = engine
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._what = _what(engine, model)
        digest = hashlib.sha256(to_json(self._what, sort_keys=True).encode()).hexdigest()[:16]
        self._file = cache_dir() / "step-costs" / f"{digest}.json"

    def read(self) -> Known | None:
        """Returns the kept costs; None if there are none or the file is damaged."""
        try:
            if self._file.is_file():
                return _read(self._file, len(self._engine.ladder))
        except Exception as error:
            self._say(
                f"the table of step costs {self._file} is damaged ({reason(error)}) and "
                "was deleted; steps are estimated until a long run measures them again"
            )
            with contextlib.suppress(OSError):
                self._file.unlink()
        return None

    def measure(self, earlier: Known | None) -> Known:
        """Measures the engine's steps, which takes some seconds, and keeps the result.

        Processes that measure the same steps take turns. This one measures nothing if another one
        has meanwhile found costs that are settled.

        Args:
          earlier: the costs known before, see `read`.

        Returns:
          The latest costs with the measurement added, see `Known.with_measurement`.
        """
        with ExitStack() as held:
            # Without a cache directory the costs are measured again next time.
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(alone(lock_of(self._file)))
            latest = self.read() or earlier
            if latest is not None and latest.settled:
                return latest
            known = Known(*measure_costs(self._engine), looks=1)
            if latest is not None:
                known = latest.with_measurement(known)
            _write(self._file, self._what, known)
            return known


def _what(engine: Engine, model: str) -> dict[str, Any]:
    """Everything that the costs depend on, which is the key of the table."""
    return {
        "model": model,
        "weights": _shapes(engine.params),
        "cache": [list(engine.cache_spec.shape), str(engine.cache_spec.dtype)],
        "ladder": [list(rung) for rung in engine.ladder],
        "drafter": [_name_of(engine.drafter), _shapes(engine.drafter.weights)],
        "device": device_name(engine.devices.number),
        "versions": [jax.__version__, __version__, _KERNELS],
    }


def _name_of(drafter: Drafter) -> str:
    """The drafter's repr, or its class if the repr is the default one, which has an address."""
    plain = type(drafter).__repr__ is object.__repr__
    return type(drafter).__qualname__ if plain else repr(drafter)


def _shapes(weights: Any) -> str:
    """A short hash of the shapes and types of all arrays."""
    every = [f"{x.shape} {x.dtype}" for x in jax.tree.leaves(weights)]
    return hashlib.sha256("\n".join(every).encode()).hexdigest()[:16]


def _read(file: Path, rungs: int) -> Known:
    content = json.loads(file.read_text(encoding="utf-8"))
    seconds = [math.inf if cost is None else _possible(cost) for cost in content["rungs"]]
    cached = [_possible(cost) for cost in content["cached"]]
    draft, looks = _possible(content["draft"]), int(content["looks"])
    if len(seconds) != rungs or len(cached) != rungs:
        raise ValueError("it is of another ladder")
    if not all(seconds) or all(map(math.isinf, seconds)) or looks < 1:
        raise ValueError("it has impossible costs")
    rung_costs, cached_costs = (np.asarray(x, np.float32) for x in (seconds, cached))
    costs = StepCosts(rung_costs, cached_costs, np.float32(draft))
    return Known(costs, content["settled"] is True, looks)


def _possible(cost: Any) -> float:
    """Returns a cost rounded to float32, as it is computed with.

    Raises:
      ValueError: the cost is negative, infinite or not a number in float32.
    """
    with np.errstate(over="ignore"):
        seconds = float(np.float32(cost))
    if not 0 <= seconds < math.inf:
        raise ValueError("it has impossible costs")
    return seconds


def _write(file: Path, what: dict[str, Any], known: Known) -> None:
    costs = known.costs
    # JSON has no infinity: rungs that only prompts need are null.
    seconds = [None if math.isinf(cost) else float(cost) for cost in np.asarray(costs.rungs)]
    cached = np.asarray(costs.cached).tolist()
    content = {**what, "rungs": seconds, "cached": cached, "draft": float(costs.draft)}
    content |= {"settled": known.settled, "looks": known.looks}
    with contextlib.suppress(OSError):  # the costs are measured again next time
        replace_text(file, to_json(content, indent=1) + "\n")
