"""Every process measures the same step costs in every round, as if on a busy machine."""

import os
import time
from types import SimpleNamespace

import numpy as np

from emsjax.costs import table
from emsjax.costs.measure import Measured
from emsjax.engine.step_costs import StepCosts
from tests.together import take_turns

SETTLES = os.environ["SETTLES"] == "yes"
measured = 0


def measure_costs(_engine: object) -> Measured:
    global measured  # noqa: PLW0603
    measured += 1
    time.sleep(0.002)
    costs = StepCosts(np.float32([1, 2]), np.float32([0, 0]), np.float32(0))
    return Measured(costs, SETTLES)


def measure(turn: int) -> list:
    global measured  # noqa: PLW0603
    measured = 0
    engine = SimpleNamespace(ladder=[1, 2])
    costs = table.CostTable(engine, f"model {turn}")
    known = costs.measure(costs.read())
    return [measured, known.looks, known.settled]


if __name__ == "__main__":
    table.measure_costs = measure_costs
    table._what = lambda _engine, model: {"model": model}
    take_turns(measure)
