"""The names by which clients may call the server.

A page of another site may let its own name lead to the server's address (DNS rebinding). For the
browser it then speaks to its own site, and may read all answers. Its requests still have that name
in their `Host` header.
"""

import ipaddress
import socket
from collections.abc import Iterable

ANY = "*"


def own_names(host: str, more: Iterable[str]) -> frozenset[str] | None:
    """Returns the names of a server, besides addresses and localhost; None if any will do.

    Args:
      host: what it listens at.
      more: further names; `ANY` for all.
    """
    names = {_name(each) for each in (host, socket.gethostname(), *more)}
    return None if ANY in names else frozenset(names)


def is_own(header: str, names: frozenset[str]) -> bool:
    """Returns whether a `Host` header is an address, localhost, or one of the names.

    A browser sends an address only for pages that it has from there.
    """
    name = _name(header)
    if name in names or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(header: str) -> str:
    """Returns a host without its port, in small letters."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    if host.count(":") > 1:  # an IPv6 address, as `--host` has it
        return host
    return host.partition(":")[0].removesuffix(".")
