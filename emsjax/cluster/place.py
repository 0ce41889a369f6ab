"""Which of the hosts this process is."""

import os
from dataclasses import dataclass
from typing import Any

from emsjax.errors import UserError, foreign

_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_REMEDY = "give coordinator_address, num_processes and process_id"


@dataclass(frozen=True)
class Place:
    """The place of this process among the hosts.

    Attributes:
      address: where host 0 listens, "name:port".
      number: how many hosts there are.
      index: which one this is, from 0.
      local_devices: the devices of the machine that it takes; None for all.
    """

    address: str
    number: int
    index: int
    local_devices: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The name or address of host 0."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port on which host 0 listens."""
        return int(self.address.rpartition(":")[2])


def find_place(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> Place:
    """Returns the place of this process; what is not given, jax finds out.

    jax knows TPU slices, Slurm, Open MPI and Kubernetes.

    Args:
      coordinator_address: where host 0 listens.
      num_processes: how many hosts there are.
      process_id: which one this is.

    Raises:
      UserError: jax does not find it out, or the numbers are impossible.
    """
    address = coordinator_address or os.environ.get(_ADDRESS)
    found: tuple[Any, ...] = address, num_processes, process_id, None
    if None in found[:3]:
        found = _detected(address, num_processes, process_id)
    address, number, index, devices = found
    missing = [
        name
        for name, value in zip(
            ("coordinator_address", "num_processes", "process_id"), found, strict=False
        )
        if value is None
    ]
    if missing:
        raise UserError(f"jax finds no cluster here, and {missing[0]} is not given; {_REMEDY}")
    place = Place(str(address), int(number), int(index), None if devices is None else (*devices,))
    _check(place)
    return place


def _detected(address: str | None, number: int | None, index: int | None) -> tuple[Any, ...]:
    # jax offers this only as a part of `jax.distributed.initialize`, which cannot say which host
    # is missing.
    import jax  # noqa: F401 the module below cannot be the first of jax's
    from jax._src.clusters import ClusterEnv

    with foreign("jax cannot find the hosts", _REMEDY):
        return tuple(
            ClusterEnv.auto_detect_unset_distributed_params(address, number, index, None, None, 60)
        )


def _check(place: Place) -> None:
    name, _, port = place.address.rpartition(":")
    if not (name and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"coordinator_address={place.address} is no address; give the name of host 0 and a "
            "free port on it, such as 10.0.0.1:9000"
        )
    if place.number < 1:
        raise UserError(f"num_processes={place.number} is too small; give 1 or more")
    if not 0 <= place.index < place.number:
        raise UserError(
            f"process_id={place.index} is none of {place.number} hosts; give 0 to "
            f"{place.number - 1}"
        )
