"""A command that runs on several hosts: on host 0 as ever, and on the others for host 0."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from emsjax.cluster.hosts import Hosts
from emsjax.cluster.join import join_hosts


class Follows(Protocol):
    """The part of `emsjax.llm.LLM` that hosts but the first use."""

    def follow(self) -> None:
        """Works for host 0 until that one has ended."""


def run_on_hosts(
    where: Mapping[str, Any],
    facts: Mapping[str, Any],
    lead: Callable[[Hosts], int],
    build: Callable[..., Follows],
    leader_does: str,
) -> int:
    """Joins this process to the other hosts and returns its exit status.

    Args:
      where: arguments of `join_hosts`.
      facts: the options of `build`, which must be the same on all hosts.
      lead: what host 0 does; returns the exit status.
      build: makes what the others do it with, given `facts` and the hosts.
      leader_does: what the others say of host 0, such as "answers requests".

    Raises:
      UserError: a host does not come, does not fit, or is gone.
    """
    with join_hosts(**where, facts=facts) as hosts:
        if hosts.leads:
            return lead(hosts)
        said = f"host {hosts.index} of {hosts.number} works for host 0, which {leader_does}"
        print(said, file=sys.stderr, flush=True)
        build(**facts, hosts=hosts).follow()
    return 0
