"""One line of the table."""

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
    """What one kernel does for one model's work.

    Attributes:
      model: name.
      kernel: "emsjax", or "jax" with its sizes.
      vmem_bytes: scratch memory.
      block: tokens of keys and values in one trip of the inner loop.
      bundles: of that trip.
      least: cycles that the busiest unit takes for it.
      busiest: that unit.
      spills: registers put into memory and taken back in that trip.
      all_bundles: for the whole work.
      all_bytes: moved between HBM and VMEM for the whole work.
      least_bytes: what has to be moved.
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
        """As `HEADER` says."""
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
    """Markdown."""
    rule = ["---", "---", *["--:"] * (len(HEADER) - 2)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEADER, rule, *map(Row.cells, rows)))
