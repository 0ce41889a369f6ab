"""Joins this process to the hosts of a model."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from emsjax.cluster.aborts import delay_aborts
from emsjax.cluster.hosts import CHECK, Follower, Hosts, Leader, checks
from emsjax.cluster.meet import coordinator, gather, report, told
from emsjax.cluster.place import find_place
from emsjax.errors import foreign
from emsjax.host.compiling import watch_compiling
from emsjax.host.patience import patience_s
from emsjax.version import __version__


def join_hosts(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Hosts:
    """Joins this process to those on other hosts, so that jax sees the devices of all.

    It must come before anything else that uses jax's devices.

    Args:
      coordinator_address: a free port of host 0, as all hosts reach it: "10.0.0.1:9000". On a TPU
        slice and under Slurm, Open MPI or Kubernetes, all three may be left out.
      num_processes: how many hosts there are.
      process_id: which one this is, from 0.
      facts: what must be the same on all hosts, by name.

    Returns:
      The hosts, to be given to `LLM` and closed at the end, as a context manager.

    Raises:
      UserError: a host does not come in time, or has other versions or other facts.
    """
    import jax

    watch_compiling()
    patience = patience_s()
    place = find_place(coordinator_address, num_processes, process_id)
    facts = {"emsjax": __version__, "jax": jax.__version__, CHECK: checks()} | dict(facts or {})
    if place.index == 0:
        peers = gather(place, facts, patience)
        address = coordinator(peers, place)
        hosts: Hosts = Leader(peers, patience)
    else:
        leader = report(place, facts, patience)
        address = told(leader, patience)
        hosts = Follower(place.index, leader, place.number, patience)
        delay_aborts()
    # jax would wait for a host that is gone by now, so they already watch each other.
    remedy = "let connections between their ports pass"
    with foreign("jax cannot connect the hosts", remedy), hosts.starting(), _sigterm_stays():
        jax.distributed.initialize(
            address,
            place.number,
            place.index,
            local_device_ids=place.local_devices,
            initialization_timeout=int(patience),
            # We miss a host before, and say which.
            heartbeat_timeout_seconds=int(2 * patience) + 1,
        )
        with hosts.devices_run():
            _connect_devices()
    return hosts


def _connect_devices() -> None:
    """Has all devices add something up, for which they connect.

    Now all hosts are here. Later, one may compile or read for a minute longer than another, and
    CPUs wait for each other's addresses for half a minute only.
    """
    import jax
    import numpy as np

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("devices",))
    everywhere = jax.sharding.PartitionSpec()

    def count() -> jax.Array:
        return jax.lax.psum(jax.lax.axis_index("devices"), "devices")

    program = jax.shard_map(count, mesh=mesh, in_specs=(), out_specs=everywhere)
    jax.block_until_ready(jax.jit(program)())


@contextmanager
def _sigterm_stays() -> Iterator[None]:
    """Gives SIGTERM its meaning back, which jax takes as a mere announcement that an end is near.

    Outside the main thread this does nothing, because handlers are only set in the main thread.
    """
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
