"""The devices of all hosts, which share a model."""

from collections import Counter

import jax

from emsjax.errors import UserError


def devices_of_hosts(asked: int | str) -> int:
    """Returns how many devices the hosts have together.

    Args:
      asked: the number that the user gave; 1 and "auto" mean all.

    Raises:
      UserError: another number is asked for.
    """
    found = jax.devices()
    if asked not in (1, "auto", len(found)):
        have = Counter(device.process_index for device in found)
        each = ", ".join(f"{have[index]} on host {index}" for index in sorted(have))
        raise UserError(
            f"tensor_parallel_size={asked} is not the number of all devices of the hosts ({each}); "
            f"leave it out, or give {len(found)}"
        )
    return len(found)
