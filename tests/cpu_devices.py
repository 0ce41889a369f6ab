"""Processes in which a CPU pretends to be several devices."""

import os

# XLA aborts the process if a device waits longer than this for the others, 40 seconds by default,
# in which a busy or paused machine may not get to them.
PATIENCE_S = 600


def flags_for(devices: int) -> str:
    """Returns `XLA_FLAGS` for a process with so many devices."""
    limit = f"--xla_cpu_collective_call_terminate_timeout_seconds={PATIENCE_S}"
    number = f"--xla_force_host_platform_device_count={devices}"
    return f"{os.environ.get('XLA_FLAGS', '')} {number} {limit}".strip()
