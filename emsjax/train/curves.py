"""Loss and acceptance over the training, as a picture."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from emsjax.train.fit import Progress

_SHOWN_LENGTHS = (1, 3, 5)


def can_draw() -> bool:
    """Whether matplotlib is installed, which nothing else of a training needs."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(progress: Sequence[Progress], file: Path) -> None:
    """Writes a PNG."""
    # Not pyplot, which would change how the caller's own figures are shown.
    from matplotlib.figure import Figure

    steps = [each.step for each in progress]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [each.loss for each in progress])
    left.set(title="Loss on the texts learnt from", xlabel="updates", ylabel="loss a guess")
    for length in _SHOWN_LENGTHS:
        accepted = [each.accepted[length - 1] for each in progress]
        right.plot(steps, accepted, label=f"draft of {length}")
    right.set(title="Accepted tokens a step, texts held out", xlabel="updates", ylabel="tokens")
    right.set_ylim(bottom=0)
    right.legend()
    figure.savefig(file, dpi=120)
