"""A command that runs on several hosts: on host 0 as ever, and on the others for host 0."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from emsjax.cluster.hosts import Hosts
from emsjax.cluster.join import join_hosts


def run_on_hosts(
    where: Mapping[str, Any],
    facts: Mapping[str, Any],
    lead: Callable[[Hosts], int],
    follow: Callable[[Hosts], None],
    leader_does: str,
) -> int:
    """Joins this process to the other hosts and returns its exit status.

    Args:
      where: arguments of `join_hosts`.
      facts: what must be the same on all hosts, by name.
      lead: what host 0 does; returns the exit status.
      follow: what the others do.
      leader_does: what the others say of host 0, such as "answers requests".

    Raises:
      UserError: a host does not come, does not fit, or is gone.
    """
    with join_hosts(**where, facts=facts) as hosts:
        if hosts.leads:
            return lead(hosts)
        said = f"host {hosts.index} of {hosts.number} works for host 0, which {leader_does}"
        print(said, file=sys.stderr, flush=True)
        follow(hosts)
    return 0
