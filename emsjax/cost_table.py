"""Step costs kept on disk, so that they are measured once for a model, a device and a batch."""

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emsjax.engine import Engine
from emsjax.loading.default_model import cache_dir
from emsjax.step_costs import measure_costs
from emsjax.version import __version__
from emsjax.whole_files import replace_text
from emsjax.worth import StepCosts


def known_costs(engine: Engine, model: str, say: Callable[[str], None] | None = None) -> StepCosts:
    """The costs of the engine's steps, measured if they are not known yet.

    Args:
      engine: with the ladder to price; its programs are compiled for this.
      model: the name under which they are kept.
      say: told of a damaged table; standard error by default.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    what = _what(engine, model)
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_dir() / "step-costs" / f"{digest}.json"
    try:
        if file.is_file():
            return _read(file, len(engine.ladder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"the table of step costs {file} is damaged ({error}): measuring again")
    costs, settled = measure_costs(engine)
    # A table from a restless moment would mislead every later run: those look for themselves.
    if settled:
        _write(file, what, costs)
    return costs


def _what(engine: Engine, model: str) -> dict[str, Any]:
    """All that the costs depend on."""
    return {
        "model": model,
        "weights": _shapes(engine.params),
        "cache": [list(engine.cache_spec.shape), str(engine.cache_spec.dtype)],
        "ladder": [list(rung) for rung in engine.ladder],
        "drafter": [repr(engine.drafter), _shapes(engine.drafter.weights)],
        "device": _device(),
        "versions": [jax.__version__, __version__],
    }


def _shapes(weights: Any) -> str:
    """Sizes and types of all arrays, in a few characters."""
    every = [f"{x.shape} {x.dtype}" for x in jax.tree.leaves(weights)]
    return hashlib.sha256("\n".join(every).encode()).hexdigest()[:16]


def _device() -> str:
    """What computes; of a processor also how much of it there is."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.platform} {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu {_processor()}, {cores} cores"


def _processor() -> str:
    """Its name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _read(file: Path, rungs: int) -> StepCosts:
    content = json.loads(file.read_text(encoding="utf-8"))
    seconds = [math.inf if cost is None else float(cost) for cost in content["rungs"]]
    more = [float(cost) for cost in [*content["cached"], content["draft"]]]
    if len(seconds) != rungs or len(more) != rungs + 1:
        raise ValueError("of another ladder")
    if not all(cost > 0 for cost in seconds) or not all(0 <= cost < math.inf for cost in more):
        raise ValueError("costs that cannot be")
    draft = more.pop()
    cached = np.asarray(more, np.float32)
    return StepCosts(np.asarray(seconds, np.float32), cached, np.float32(draft))


def _write(file: Path, what: dict[str, Any], costs: StepCosts) -> None:
    seconds = [None if math.isinf(cost) else float(cost) for cost in np.asarray(costs.rungs)]
    cached = np.asarray(costs.cached).tolist()
    content = {**what, "rungs": seconds, "cached": cached, "draft": float(costs.draft)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(content, indent=1) + "\n")
    except OSError:
        return  # measured again next time
