"""The README's installation, editable or not, used from every place."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "emsjax",
    "models",
    "pallas_kernels",
    "scripts",
)
# What the command line and a user's script need, without the seconds that `LLM` takes to import.
SCRIPT = """
import emsjax, emsjax.models.config, emsjax.pallas_kernels.backends, emsjax.requests.sampling_params
print(emsjax.__file__, emsjax.models.__file__, emsjax.pallas_kernels.__file__)
assert emsjax.SamplingParams(max_tokens=3).max_tokens == 3
"""
PLACES = ("clone", "parent", "elsewhere", "next-to-models.py")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the checkout in a folder called `emsjax`, as `git clone` makes one."""
    folder = tmp_path_factory.mktemp("home") / "emsjax"
    folder.mkdir()
    skipped = shutil.ignore_patterns("__pycache__", "drafts")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module", params=["editable", "not editable"])
def python(
    request: pytest.FixtureRequest, clone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Returns the Python of an environment with emsjax; it shares this one's dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "shared.pth").write_text("\n".join(shared) + "\n")
    python = environment / "bin" / "python"
    kind = ["--editable"] if request.param == "editable" else []
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--ignore-installed"]
    done = run(*command, *kind, ".", cwd=clone)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(clone / "build", ignore_errors=True)
    return python


@pytest.mark.parametrize("place", PLACES)
def test_the_readme_s_installation_works_from_anywhere(
    python: Path, clone: Path, place: str, tmp_path: Path
):
    directory = {"clone": clone, "parent": clone.parent}.get(place, tmp_path)
    if place == "next-to-models.py":
        (tmp_path / "models.py").write_text("MINE = True\n")
        (tmp_path / "pallas_kernels.py").write_text("MINE = True\n")
    (directory / "script.py").write_text(SCRIPT)
    done = run(python, "-W", "error", "script.py", cwd=directory)
    assert done.returncode == 0, done.stderr
    files = [Path(each) for each in done.stdout.split()]
    assert len(files) == 3
    own = clone if files[0].is_relative_to(clone) else python.parents[1]
    assert all(file.is_relative_to(own) for file in files), files
    done = run(python, "-m", "emsjax.generate", "--version", cwd=directory)
    assert done.stdout.startswith("emsjax "), done.stderr


def test_a_clone_that_has_moved_is_named(clone: Path, tmp_path: Path):
    """An editable install outlives its clone; Python's own error would name no remedy."""
    wheel = tmp_path / "wheel"
    wheel.mkdir()
    build = f"import build_backend; print(build_backend.build_editable({str(wheel)!r}))"
    moved = tmp_path / "emsjax"
    shutil.copytree(clone, moved)
    done = run(
        sys.executable, "-c", f"import sys; sys.path.insert(0, 'scripts'); {build}", cwd=moved
    )
    assert done.returncode == 0, done.stderr
    (built,) = wheel.iterdir()
    shutil.rmtree(moved)
    # Python imports from a wheel as from a folder.
    code = f"import sys; sys.path.insert(0, {str(built)!r}); import emsjax"
    done = run(sys.executable, "-c", code, cwd=wheel)
    last = done.stderr.strip().splitlines()[-1]
    assert str(moved) in last
    assert last.endswith("which has moved; install it again.")
