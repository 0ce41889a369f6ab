"""Starts the real command on several hosts, which are processes with devices of their own."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cpu_devices import flags_for

ROOT = Path(__file__).parents[2]


def start(
    models: Sequence[Path],
    arguments: Sequence[object],
    devices: int = 4,
    command: str = "generate",
    **variables: str,
) -> "list[subprocess.Popen[str]]":
    """Starts a command on a host for each path of a model; the first host leads."""
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"localhost:{free.getsockname()[1]}"
    given = [f"--coordinator-address={address}", f"--num-processes={len(models)}", *arguments]
    return [
        start_one(model, [*given, f"--process-id={index}"], devices, command, **variables)
        for index, model in enumerate(models)
    ]


def start_one(
    model: Path,
    arguments: Sequence[object],
    devices: int = 1,
    command: str = "generate",
    **variables: str,
) -> "subprocess.Popen[str]":
    """Starts a command of `emsjax` in a process that sees so many devices."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": flags_for(devices),
    }
    begun = [sys.executable, "-m", "emsjax", command, f"--model={model}"]
    return subprocess.Popen(
        [*begun, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment | variables,
    )
