"""The layout of `design.md` §6: which way imports go, what is exported, what is packaged."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import emsjax

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
# Where each package that is not inside `emsjax/` lies in the checkout.
MOVED = {"emsjax.models": "models", "emsjax.pallas_kernels": "pallas_kernels"}
BACKENDS = {"reference", "tpu", "gpu"}

# Shapes, state and the pure functions of a step: jax, numpy and each other, nothing else.
LEAVES = (
    "emsjax.shapes",
    "emsjax.packing",
    "emsjax.ladder",
    "emsjax.state",
    "emsjax.step_plan",
    "emsjax.holes",
    "emsjax.policy",
    "emsjax.verify",
    "emsjax.errors",
    "emsjax.metrics",
    "emsjax.names",
    "emsjax.model_protocol",
    "emsjax.drafters",
    "emsjax.acceptance",
    "emsjax.worth",
    "emsjax.draft",
    "emsjax.draft_record",
    "emsjax.trace",
    "emsjax.sampling",
    "emsjax.sampling_params",
)
ENGINE = ("emsjax.engine", "emsjax.loop", "emsjax.slots", "emsjax.jobs")
API = (
    "emsjax.pallas_kernels.ragged_attention.api",
    "emsjax.pallas_kernels.cache_update.api",
    "emsjax.pallas_kernels.layer_matmul.api",
    "emsjax.pallas_kernels.products",
    "emsjax.pallas_kernels.kv_layout",
    "emsjax.pallas_kernels.backends",
)
# What each part may import besides the standard library; what is not named here is free.
ALLOWED = {
    "emsjax.pallas_kernels": ("jax", "numpy", "emsjax.pallas_kernels"),
    "emsjax.models": ("jax", "numpy", "flax", "emsjax.models", *LEAVES, *API),
    **dict.fromkeys(LEAVES, ("jax", "numpy", *LEAVES)),
    **dict.fromkeys(ENGINE, ("jax", "numpy", "flax", *LEAVES, *ENGINE)),
}
# Like every command, these may import everything.
COMMANDS = ("emsjax.pallas_kernels.report.__main__",)
# Only these know that there are families; the rest has `model_protocol`.
KNOW_MODELS = ("emsjax.models", "emsjax.loading", "emsjax.training")


def folder_of(package: str) -> Path:
    for prefix, folder in MOVED.items():
        if within(package, prefix):
            return ROOT / folder / package.removeprefix(prefix).strip(".").replace(".", "/")
    return ROOT / package.replace(".", "/")


def within(module: str, *packages: str) -> bool:
    """Whether the module is one of the packages or inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def source_files() -> Iterator[tuple[str, Path]]:
    """Each source file with the name it is imported by."""
    for package in ("emsjax", *MOVED):
        for path in sorted(folder_of(package).rglob("*.py")):
            parts = path.relative_to(folder_of(package)).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


SOURCES = dict(source_files())


def imports(module: str) -> set[str]:
    """The modules a file imports, wherever in it: `from x import y` is x.y if that is one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(inner & SOURCES.keys() or {str(node.module)})
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def test_there_is_something_to_check():
    named = (*LEAVES, *ENGINE, *API, *COMMANDS, *KNOW_MODELS)
    assert set(named) <= SOURCES.keys()
    assert imports("emsjax.pallas_kernels.cache_update.api") == {
        "jax",
        "jax.numpy",
        "emsjax.pallas_kernels.backends",
        "emsjax.pallas_kernels.cache_update.reference",
        "emsjax.pallas_kernels.cache_update.tpu",
        "emsjax.pallas_kernels.checks",
    }


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_one_way(module):
    imported = imports(module)
    for part, allowed in ALLOWED.items():
        if within(module, part) and module not in COMMANDS:
            assert {name for name in imported if not within(name, *allowed)} == set()
    if not within(module, *KNOW_MODELS):
        assert {name for name in imported if within(name, "emsjax.models")} == set()


@pytest.mark.parametrize("module", SOURCES)
def test_only_an_api_imports_a_backend(module):
    backends = {
        name
        for name in imports(module)
        if within(name, "emsjax.pallas_kernels") and name.split(".")[-1] in BACKENDS
    }
    if module.split(".")[-1] == "api":
        own = module.rpartition(".")[0]
        assert backends
        assert all(name.rpartition(".")[0] == own for name in backends)
    else:
        assert backends == set()


def test_every_operation_has_an_api_and_a_reference():
    operations = {p for p in PACKAGES if p.startswith("emsjax.pallas_kernels.")}
    operations.remove("emsjax.pallas_kernels.report")
    assert len(operations) >= 2
    for operation in operations:
        assert {f"{operation}.api", f"{operation}.reference"} <= SOURCES.keys()


def test_exported_names_are_there_and_as_documented():
    documented = {
        "LLM",
        "CompletionOutput",
        "Logprob",
        "Piece",
        "Report",
        "RequestOutput",
        "SamplingParams",
        "Trace",
        "TraceStep",
        "UserError",
        "__version__",
    }
    assert set(emsjax.__all__) == documented
    assert len(emsjax.__all__) == len(documented)
    for name in emsjax.__all__:
        assert getattr(emsjax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Llm'"):
        _ = emsjax.Llm


def test_every_folder_of_sources_is_packaged_and_every_package_is_there():
    folders = {path.parent for path in SOURCES.values()}
    assert {folder_of(package) for package in PACKAGES} == folders
    assert len(PACKAGES) == len(folders)
    for folder in folders:
        assert (folder / "__init__.py").is_file(), folder
    mapping = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert mapping == {"emsjax": "emsjax", **MOVED}


@pytest.mark.parametrize("place", ["repository", "elsewhere", "beside-models.py"])
def test_models_import_from_anywhere(place, tmp_path):
    code = "import emsjax.models as m, emsjax.pallas_kernels as p; print(m.__file__, p.__file__)"
    if place == "beside-models.py":
        (tmp_path / "models.py").write_text("MINE = True\n")
        (tmp_path / "pallas_kernels.py").write_text("MINE = True\n")
        code += "; import models; assert models.MINE"
    directory = ROOT if place == "repository" else tmp_path
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = [folder_of(package) / "__init__.py" for package in MOVED]
    if place == "repository":
        assert [Path(p).resolve() for p in result.stdout.split()] == expected
