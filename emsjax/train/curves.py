"""Plots loss and acceptance over the training."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from emsjax.errors import foreign
from emsjax.host.files import replacing
from emsjax.train.fit import Progress

_SHOWN_LENGTHS = (1, 3, 5)


def can_draw() -> bool:
    """Returns whether matplotlib is installed. The rest of the training does not need it."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(progress: Sequence[Progress], file: Path) -> None:
    """Writes a PNG with the loss and the accepted tokens per step.

    Args:
      progress: all evaluations so far.
      file: the PNG file.

    Raises:
      UserError: it cannot be drawn or written.
    """
    with foreign(f"{file} cannot be drawn", "free space, or uninstall matplotlib"):
        _draw(progress, file)


def _draw(progress: Sequence[Progress], file: Path) -> None:
    # Not pyplot, which would change how the caller's own figures are displayed.
    from matplotlib.figure import Figure

    steps = [each.step for each in progress]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [each.loss for each in progress])
    left.set(title="Loss on training texts", xlabel="updates", ylabel="loss per draft token")
    for length in _SHOWN_LENGTHS:
        accepted = [each.accepted[length - 1] for each in progress]
        right.plot(steps, accepted, label=f"draft of {length}")
    right.set(title="Accepted tokens per step, held-out texts", xlabel="updates", ylabel="tokens")
    right.set_ylim(bottom=0)
    right.legend()
    with replacing(file) as stream:
        figure.savefig(stream, dpi=120, format="png")
