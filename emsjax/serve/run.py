"""Loads the model, and serves it until the command is interrupted."""

import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from emsjax.cli.interrupts import interrupts_wait
from emsjax.errors import UserError, reason
from emsjax.serve.connections import ImpatientProtocol
from emsjax.serve.options import Options

if TYPE_CHECKING:
    from emsjax.cluster.hosts import Hosts
    from emsjax.llm import LLM

# The most open files of the process, each connection among them.
_MOST_FILES = 65_536


def run(options: Options) -> int:
    """Serves until SIGINT or SIGTERM; requests that are open then have some time to finish.

    If hosts share the model, host 0 serves and the others work for it.

    Returns:
      The exit status, 0.

    Raises:
      UserError: the port cannot be used, the model cannot be loaded, or a host is gone.
      KeyboardInterrupt: the command was interrupted before it served.
    """
    if not options.several_hosts:
        return _serve(options, None)
    with interrupts_wait():
        from emsjax.cluster.command import run_on_hosts

    lead, facts = partial(_serve, options), options.engine()
    return run_on_hosts(options.hosts(), facts, lead, _llm, "answers requests")


def _llm(**options: Any) -> "LLM":
    with interrupts_wait():
        from emsjax.llm import LLM
    return LLM(**options)


def _serve(options: Options, hosts: "Hosts | None") -> int:
    _allow_many_files()
    # Bound first, because loading a model for a port that is taken would be a waste.
    with _bound(options.host, options.port) as listener:
        with interrupts_wait():  # these import jax
            from emsjax.serve.app import make_app
            from emsjax.serve.backend import Backend

        shared = {} if hosts is None else {"hosts": hosts}
        backend = Backend(_llm(**options.engine(), **shared), options.settings())
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(backend),
                http=ImpatientProtocol,
                lifespan="on",
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(options.shutdown_time)),
            )
        )
        address = f"http://{_shown(options.host)}:{listener.getsockname()[1]}"
        key = "with" if options.api_key else "without"
        page = f"; chat at {address}" if options.page else ""
        where = "" if hosts is None else f" on {hosts.number} hosts"
        said = f"serving {backend.name}{where} at {address}/v1 {key} a key{page}"
        print(said, file=sys.stderr, flush=True)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # raised again after the shutdown that it caused
            if not server.started:
                raise
        finally:
            backend.close()
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """Returns a socket that nobody can connect to before the server listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
        listener.close()
        raise UserError(
            f"the server cannot listen at --host {host} --port {port} ({reason(error)}); "
            "give another port or address"
        ) from error
    return listener


def _allow_many_files() -> None:
    """Allows as many connections as the system lets a process have, up to a bound."""
    try:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    except (ImportError, ValueError, OSError):  # not every system has it
        return


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
