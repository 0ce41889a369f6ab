"""Processes in which a CPU pretends to be several devices."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# XLA aborts the process if a device waits longer than this for the others, 40 seconds by default,
# in which a busy or paused machine may not get to them.
PATIENCE_S = 600


def flags_for(devices: int) -> str:
    """Returns `XLA_FLAGS` for a process with so many devices."""
    limit = f"--xla_cpu_collective_call_terminate_timeout_seconds={PATIENCE_S}"
    number = f"--xla_force_host_platform_device_count={devices}"
    return f"{os.environ.get('XLA_FLAGS', '')} {number} {limit}".strip()


def check_on_devices(devices: int, *cases: str) -> None:
    """Checks that pytest passes in a process with so many devices.

    Args:
      devices: how many.
      cases: files, and further arguments of pytest.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *cases],
        env=os.environ | {"XLA_FLAGS": flags_for(devices)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
