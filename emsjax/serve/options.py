"""The options of the command line, and the checks that they fit together."""

from dataclasses import dataclass
from typing import Any

from emsjax.cli.hosts_options import HostsOptions
from emsjax.cli.model_options import check_model_options
from emsjax.errors import UserError
from emsjax.serve.hosts import own_names


@dataclass(frozen=True)
class Settings:
    """How a server treats its clients.

    Attributes:
      name: the model's name for clients; None for its own.
      api_key: what clients must give; None for no key.
      max_body: the most bytes of a body.
      most_waiting: the most outputs that wait for a slot.
      time_limit: seconds after which a request is given up.
      hosts: the names by which they may call the server, see `hosts.own_names`; None for any.
    """

    name: str | None = None
    api_key: str | None = None
    max_body: int = 8 << 20
    most_waiting: int = 1024
    time_limit: float = 600.0
    hosts: frozenset[str] | None = None


@dataclass(frozen=True)
class Options(HostsOptions):
    """The options of `python -m emsjax.serve`, one field per option."""

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: str = ""
    api_key: str | None = None
    served_model_name: str | None = None
    max_body_mb: int = 8
    max_waiting: int = 1024
    time_limit: float = 600.0
    shutdown_time: float = 30.0
    page: bool = True
    enable_prefix_caching: bool = True

    def engine(self) -> dict[str, Any]:
        """Returns the arguments for `emsjax.llm.LLM`, leaving out what is as by default."""
        # The page shows traces. Recording them takes 4 bytes for each draft position and token of
        # the cache; they are read from the device only for requests that ask for them.
        shares = {} if self.enable_prefix_caching else {"enable_prefix_caching": False}
        return super().engine() | shares | ({"trace": True} if self.page else {})

    def settings(self) -> Settings:
        """Returns what concerns clients."""
        return Settings(
            name=self.served_model_name,
            api_key=self.api_key,
            max_body=self.max_body_mb << 20,
            most_waiting=self.max_waiting,
            time_limit=self.time_limit,
            hosts=own_names(self.host, filter(None, self.allowed_hosts.split(","))),
        )


def check(options: Options) -> None:
    """Checks the options before anything is loaded.

    Raises:
      UserError: an option has an impossible value, or two options contradict each other.
    """
    check_model_options(options)
    if options.prefix_slots and not options.enable_prefix_caching:
        raise UserError(
            f"--prefix-slots {options.prefix_slots} keeps texts that --no-enable-prefix-caching "
            "does not share; leave one of them out."
        )
    if not 0 <= options.port < 65536:
        raise UserError(f"--port {options.port} is not a port; give 0 to 65535.")
    for flag, value in {
        "--max-body-mb": options.max_body_mb,
        "--max-waiting": options.max_waiting,
        "--time-limit": options.time_limit,
        "--shutdown-time": options.shutdown_time,
    }.items():
        if not 0 < value < 2**31:
            raise UserError(f"{flag} {value:g} is out of range; give a number above 0.")
    for flag, text in {
        "--api-key": options.api_key,
        "--host": options.host,
        "--served-model-name": options.served_model_name,
        "--allowed-hosts": options.allowed_hosts or None,
    }.items():
        if text is not None and not (text.isascii() and text.isprintable() and text.strip()):
            raise UserError(f"{flag} is empty or has special characters; give plain text.")
