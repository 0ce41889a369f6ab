"""The options of the command line, and the checks that they fit together."""

from dataclasses import dataclass, fields
from typing import Any

from emsjax.errors import UserError

# The options that `LLM` takes under another name, and those that only the server has.
_RENAMED = {"batch_size": "max_batch_size", "tensor_parallel": "tensor_parallel_size"}
_SERVER = frozenset(
    {
        *("host", "port", "api_key", "served_model_name", "max_body_mb", "max_waiting"),
        *("time_limit", "shutdown_time"),
    }
)


@dataclass(frozen=True)
class Settings:
    """How a server treats its clients.

    Attributes:
      name: the model's name for clients; None for its own.
      api_key: what clients must give; None for no key.
      max_body: the most bytes of a body.
      most_waiting: the most outputs that wait for a slot.
      time_limit: seconds after which a request is given up.
    """

    name: str | None = None
    api_key: str | None = None
    max_body: int = 8 << 20
    most_waiting: int = 1024
    time_limit: float = 600.0


@dataclass(frozen=True)
class Options:
    """The options of `python -m emsjax.serve`, one field per option.

    None means that the option was not given. The engine's own default then applies.
    """

    model: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    quantize: str | None = None
    kv_dtype: str | None = None
    tensor_parallel: int | str | None = None
    batch_size: int | None = None
    prefix_slots: int = 0
    max_model_len: int | None = None
    exact: bool = False
    method: str = "ems"
    drafter: str | None = None
    draft_model: str | None = None
    draft_quantize: str | None = None
    draft_length: int | None = None
    planner: bool = True
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_name: str | None = None
    max_body_mb: int = 8
    max_waiting: int = 1024
    time_limit: float = 600.0
    shutdown_time: float = 30.0

    def engine(self) -> dict[str, Any]:
        """Returns the arguments for `emsjax.llm.LLM`, leaving out options that were not given."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _SERVER}
        return {
            _RENAMED.get(name, name): value for name, value in given.items() if value is not None
        }

    def settings(self) -> Settings:
        """Returns what concerns clients."""
        return Settings(
            name=self.served_model_name,
            api_key=self.api_key,
            max_body=self.max_body_mb << 20,
            most_waiting=self.max_waiting,
            time_limit=self.time_limit,
        )


def check(options: Options) -> None:
    """Checks what only the server reads; `LLM` checks the rest.

    Raises:
      UserError: an option has an impossible value.
    """
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
    }.items():
        if text is not None and not (text.isascii() and text.isprintable() and text.strip()):
            raise UserError(f"{flag} is empty or has special characters; give plain text.")
