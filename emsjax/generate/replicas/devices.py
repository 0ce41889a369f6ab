"""Which devices each replica sees.

jax takes all devices that it finds, and a TPU chip belongs to one process. So each replica is
started with variables that show it a part of them; those for devices that the machine does not have
change nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from emsjax.errors import UserError

# How the chips of one process lie, by their number, as in jax's own tests of several processes.
# Other numbers lie in a row.
_BOUNDS = {4: "2,2,1", 8: "2,4,1"}
# The older names of two variables, which some machines set and libtpu still reads.
_OLDER = {
    "TPU_CHIPS_PER_HOST_BOUNDS": "TPU_CHIPS_PER_PROCESS_BOUNDS",
    "TPU_HOST_BOUNDS": "TPU_PROCESS_BOUNDS",
}
# The processes on the chips of one host must not share a port; libtpu's own default is this one.
_TPU_PORT = 8476
_ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")


def environment_of(
    number: int, count: int, given: Mapping[str, str], each: int = 1
) -> dict[str, str]:
    """Returns the environment of a replica.

    Args:
      number: the replica's number, from 0.
      count: the number of replicas.
      given: the environment of the command. If it already names devices, the replicas share these.
      each: the number of devices of a replica.

    Raises:
      UserError: `given` names fewer devices than the replicas need.
    """
    if given.get("JAX_PLATFORMS") == "cpu":
        return dict(given)
    gpus = _part("CUDA_VISIBLE_DEVICES", number, count, given, each)
    chips = _part("TPU_VISIBLE_CHIPS", number, count, given, each)
    port = str(_TPU_PORT + int(chips[0])) if chips[0].isdecimal() else str(_TPU_PORT + number)
    tpu = {
        "TPU_VISIBLE_CHIPS": ",".join(chips),
        "TPU_VISIBLE_DEVICES": ",".join(chips),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _BOUNDS.get(each, f"1,{each},1"),
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": port,
        "CLOUD_TPU_TASK_ID": "0",
    }
    tpu |= {older: tpu[name] for older, name in _OLDER.items() if older in given}
    return {**given, **tpu, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def _part(variable: str, number: int, count: int, given: Mapping[str, str], each: int) -> list[str]:
    """Returns a replica's part of the devices that a variable names; of all, if it is not set."""
    named = given.get(variable)
    if named is None:
        return [str(number * each + place) for place in range(each)]
    devices = [device.strip() for device in named.split(",")]
    if devices in ([""], ["-1"]):  # no device of this kind is to be used
        return devices
    if len(devices) < count * each:
        raise UserError(
            f"data_parallel={count} needs {count * each} devices, but {variable}={named} names "
            f"{len(devices)}; give a smaller number, or name more devices."
        )
    return devices[number * each : (number + 1) * each]


def cores_of(number: int, count: int, given: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns a replica's share of the CPU cores; None for all of them.

    Replicas on one CPU would slow each other down if each had as many threads as there are cores.
    With accelerators, all may use all cores, which have little to do.

    Args:
      number: the replica's number, from 0.
      count: the number of replicas. If there are fewer cores, replicas share them.
      given: the environment of the command.
    """
    if not hasattr(os, "sched_getaffinity") or (
        given.get("JAX_PLATFORMS") != "cpu"
        and any(any(Path("/dev").glob(name)) for name in _ACCELERATORS)
    ):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        return (cores[number % len(cores)],)
    return tuple(cores[number * len(cores) // count : (number + 1) * len(cores) // count])
