"""The built wheel in a fresh environment, used next to modules of the same names."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from emsjax import __version__
from tests.tiny import checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "emsjax", "models", "pallas_kernels")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('..')"
USE = f"""
import importlib.metadata, pathlib, sys
import models, pallas_kernels  # the user's own
assert models.MINE and pallas_kernels.MINE
import emsjax, emsjax.models, emsjax.pallas_kernels
for package in (emsjax, emsjax.models, emsjax.pallas_kernels):
    assert pathlib.Path(package.__file__).is_relative_to(sys.prefix), package.__file__
assert importlib.metadata.version("emsjax") == emsjax.__version__ == {__version__!r}
assert list(pathlib.Path(emsjax.__file__).parent.glob("drafts/*/draft.safetensors"))
import emsjax.pallas_kernels.tuned
emsjax.pallas_kernels.tuned.table()  # from a file of the package
output = emsjax.LLM(sys.argv[1], max_batch_size=1).generate([[5, 6, 7]])[0]
assert len(output.outputs[0].token_ids) == 16
"""


def run(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel from a copy, because setuptools writes into the source directory."""
    source = tmp_path_factory.mktemp("build") / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(sys.executable, "-c", BUILD, cwd=source)
    (built,) = source.parent.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the `bin` of an environment with the wheel; it shares this one's dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    binaries = environment / "bin"
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python")
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "shared.pth").write_text("\n".join(shared) + "\n")
    return binaries


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Returns a user's directory with modules `models` and `pallas_kernels`."""
    for name in ("models.py", "pallas_kernels.py"):
        (tmp_path / name).write_text("MINE = True\n")
    return tmp_path


def test_import_next_to_modules_of_the_same_names(binaries: Path, elsewhere: Path):
    pytest.importorskip("torch")
    run(binaries / "python", "-W", "error", "-c", USE, checkpoint("llama"), cwd=elsewhere)


def test_commands_next_to_modules_of_the_same_names(binaries: Path, elsewhere: Path):
    pytest.importorskip("torch")
    assert run(binaries / "emsjax", "--version", cwd=elsewhere) == f"emsjax {__version__}\n"
    line = {"prompt_token_ids": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
    (elsewhere / "in.jsonl").write_text(json.dumps(line))
    module = (binaries / "python", "-m", "emsjax.generate")
    output = run(*module, "--model", checkpoint("llama"), "--input", "in.jsonl", cwd=elsewhere)
    assert len(json.loads(output)["token_ids"]) == 4
