"""The options of commands whose model several hosts may share."""

from dataclasses import dataclass
from typing import Annotated, Any

from emsjax.cli.declare import number, option
from emsjax.cli.model_options import ModelOptions

_HOSTS = "Several hosts"

Distributed = Annotated[
    bool, option("--distributed", "Share the model with other hosts, found by jax.", _HOSTS)
]
CoordinatorAddress = Annotated[
    str | None, option("--coordinator-address", "A free port of host 0.", _HOSTS, "HOST:PORT")
]
NumProcesses = Annotated[
    int | None, number("--num-processes", "Hosts that share the model.", _HOSTS)
]
ProcessId = Annotated[int | None, number("--process-id", "Which host this is, from 0.", _HOSTS)]


@dataclass(frozen=True)
class HostsOptions(ModelOptions):
    """The options of a model that several hosts may share, one field per option."""

    distributed: bool = False
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @property
    def several_hosts(self) -> bool:
        """Whether hosts share the model."""
        return self.distributed or any(value is not None for value in self.hosts().values())

    def hosts(self) -> dict[str, Any]:
        """Returns the arguments for `emsjax.cluster.join.join_hosts`."""
        names = "coordinator_address", "num_processes", "process_id"
        return {name: getattr(self, name) for name in names}
