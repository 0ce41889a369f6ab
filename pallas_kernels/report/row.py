"""The rows of the report's table."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

MEGA = 1e6
HEADER = (
    "model",
    "kernel",
    "VMEM MiB",
    "tokens a block",
    "bundles a block",
    "busiest unit's cycles",
    "busiest unit",
    "spills",
    "bundles in all, thousands",
    "MB moved",
    "of which needed",
    "bytes a token: in the cache",
    "needed",
)


class Row(NamedTuple):
    """Figures of one kernel for one model's work. A trip is one of the loop over blocks.

    Attributes:
      model: its name.
      kernel: "emsjax", for chains or for token trees, or "jax" with its block sizes.
      vmem_bytes: scratch memory.
      block: tokens of keys and values in a trip.
      bundles: bundles of a trip.
      least: cycles that the busiest unit needs for a trip.
      busiest: the name of that unit.
      spills: stores and loads of spilled registers in a trip.
      all_bundles: bundles of the whole work.
      all_bytes: bytes moved between HBM and VMEM for the whole work.
      least_bytes: bytes that any kernel must move.
      allocated: bytes of a token in the cache.
      needed: bytes of its keys and values.
    """

    model: str
    kernel: str
    vmem_bytes: int
    block: int
    bundles: int
    least: int
    busiest: str
    spills: int
    all_bundles: int
    all_bytes: int
    least_bytes: int
    allocated: int
    needed: int

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADER`."""
        return (
            self.model,
            self.kernel,
            f"{self.vmem_bytes / 2**20:.1f}",
            str(self.block),
            str(self.bundles),
            str(self.least),
            self.busiest,
            str(self.spills),
            f"{self.all_bundles / 1e3:.0f}",
            f"{self.all_bytes / MEGA:.1f}",
            f"{self.least_bytes / MEGA:.1f}",
            str(self.allocated),
            str(self.needed),
        )


def table(rows: list[Row]) -> str:
    """Writes the rows as a Markdown table."""
    return written(HEADER, map(Row.cells, rows), texts=2)


def written(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """Writes a Markdown table, of which all but the first `texts` columns hold figures.

    Kernels import nothing of emsjax, so `emsjax.cli.markdown` cannot be used here.
    """
    rule = [*["---"] * texts, *["--:"] * (len(header) - texts)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
