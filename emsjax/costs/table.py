"""Step costs kept on disk, so that they are measured once for a model, a device and a batch."""

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from emsjax.costs.measure import measure_costs
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.worth import StepCosts
from emsjax.host.cache import cache_dir
from emsjax.host.device import device_name
from emsjax.host.files import replace_text
from emsjax.version import __version__

# What restless moments say is averaged; of so many it is believed.
ENOUGH_LOOKS = 4


class Known(NamedTuple):
    """What is known of an engine's steps.

    Attributes:
      costs: of this ladder.
      settled: whether they are believed: measured at a quiet moment, or often enough; if not,
        they were measured on a busy machine, or estimated.
      looks: how often they were measured; 0 where they are estimated.
    """

    costs: StepCosts
    settled: bool
    looks: int

    def and_another(self, newer: "Known") -> "Known":
        """With what another look found; one at a quiet moment replaces all others."""
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
    """The costs of the engine's steps, measured if they are not known yet.

    Args:
      engine: with the ladder to price; its programs are compiled for this.
      model: the name under which they are kept.
      say: told of a damaged table; standard error by default.
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
        digest = hashlib.sha256(json.dumps(self._what, sort_keys=True).encode()).hexdigest()[:16]
        self._file = cache_dir() / "step-costs" / f"{digest}.json"

    def read(self) -> Known | None:
        """What was measured before; None where nothing was, or the file is damaged."""
        try:
            if self._file.is_file():
                return _read(self._file, len(self._engine.ladder))
        except (
            OSError,
            ArithmeticError,
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
        ) as error:
            self._say(
                f"the table of step costs {self._file} is damaged ({error}) and deleted: "
                "steps are timed anew before a long run, and estimated until then"
            )
            with contextlib.suppress(OSError):
                self._file.unlink()
        return None

    def measure(self, earlier: Known | None) -> Known:
        """Times the engine's steps, which takes some seconds, and keeps what is found.

        Args:
          earlier: what was known before, see `read`.
        """
        known = Known(*measure_costs(self._engine), looks=1)
        if earlier is not None:
            known = earlier.and_another(known)
        _write(self._file, self._what, known)
        return known


def _what(engine: Engine, model: str) -> dict[str, Any]:
    """All that the costs depend on."""
    return {
        "model": model,
        "weights": _shapes(engine.params),
        "cache": [list(engine.cache_spec.shape), str(engine.cache_spec.dtype)],
        "ladder": [list(rung) for rung in engine.ladder],
        "drafter": [_name_of(engine.drafter), _shapes(engine.drafter.weights)],
        "device": device_name(),
        "versions": [jax.__version__, __version__],
    }


def _name_of(drafter: Drafter) -> str:
    """As it calls itself; its class where that would be its address."""
    plain = type(drafter).__repr__ is object.__repr__
    return type(drafter).__qualname__ if plain else repr(drafter)


def _shapes(weights: Any) -> str:
    """Sizes and types of all arrays, in a few characters."""
    every = [f"{x.shape} {x.dtype}" for x in jax.tree.leaves(weights)]
    return hashlib.sha256("\n".join(every).encode()).hexdigest()[:16]


def _read(file: Path, rungs: int) -> Known:
    content = json.loads(file.read_text(encoding="utf-8"))
    seconds = [math.inf if cost is None else _possible(cost) for cost in content["rungs"]]
    cached = [_possible(cost) for cost in content["cached"]]
    draft, looks = _possible(content["draft"]), int(content["looks"])
    if len(seconds) != rungs or len(cached) != rungs:
        raise ValueError("of another ladder")
    if not all(seconds) or all(map(math.isinf, seconds)) or looks < 1:
        raise ValueError("costs that cannot be")
    rung_costs, cached_costs = (np.asarray(x, np.float32) for x in (seconds, cached))
    costs = StepCosts(rung_costs, cached_costs, np.float32(draft))
    return Known(costs, content["settled"] is True, looks)


def _possible(cost: Any) -> float:
    """Seconds as they are computed with, in float32.

    Raises:
      ValueError: nothing takes so long.
    """
    with np.errstate(over="ignore"):
        seconds = float(np.float32(cost))
    if not 0 <= seconds < math.inf:
        raise ValueError("costs that cannot be")
    return seconds


def _write(file: Path, what: dict[str, Any], known: Known) -> None:
    costs = known.costs
    seconds = [None if math.isinf(cost) else float(cost) for cost in np.asarray(costs.rungs)]
    cached = np.asarray(costs.cached).tolist()
    content = {**what, "rungs": seconds, "cached": cached, "draft": float(costs.draft)}
    content |= {"settled": known.settled, "looks": known.looks}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(content, indent=1) + "\n")
    except OSError:
        return  # measured again next time
