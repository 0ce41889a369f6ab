"""The code follows the map in CONTRIBUTING.md: imports, exported names and packages."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import emsjax

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
# The folders of packages that lie outside `emsjax/` in the checkout.
MOVED = {"emsjax.models": "models", "emsjax.pallas_kernels": "pallas_kernels"}
BACKENDS = {"reference", "cpu", "tpu", "tpu_packed", "gpu", "gpu_sums", "gpu_triton"}

# The modules that every room may import. They import no room.
COMMON = ("emsjax.limits", "emsjax.errors", "emsjax.shapes", "emsjax.version")
# The packages outside this project that these rooms may import.
OUTSIDE = {
    "emsjax.engine": {"jax", "numpy", "flax"},
    "emsjax.sampling": {"jax", "numpy"},
    "emsjax.drafters": {"jax"},
    "emsjax.models": {"jax", "numpy", "flax"},
    "emsjax.pallas_kernels": {"jax", "numpy", "numba", "llvmlite"},
}
# The modules of the kernels that models may import.
API = (
    "emsjax.pallas_kernels.ragged_attention.api",
    "emsjax.pallas_kernels.cache_update.api",
    "emsjax.pallas_kernels.expert_matmul.api",
    "emsjax.pallas_kernels.expert_matmul.tiles",
    "emsjax.pallas_kernels.layer_matmul.api",
    "emsjax.pallas_kernels.residual_norm.api",
    "emsjax.pallas_kernels.norms",
    "emsjax.pallas_kernels.products",
    "emsjax.pallas_kernels.kv_layout",
    "emsjax.pallas_kernels.kv_rows",
    "emsjax.pallas_kernels.backends",
    "emsjax.pallas_kernels.quantised",
    "emsjax.pallas_kernels.int8_cache",
)
ROW = re.compile(r"^\| `([\w/.]+)` \| [^|]+ \| ((?:`\w+` ?)*)\|$", re.MULTILINE)


def permitted() -> dict[str, set[str]]:
    """Returns the rooms that each room in the map of CONTRIBUTING.md may import."""
    rooms = {}
    for place, names in ROW.findall((ROOT / "CONTRIBUTING.md").read_text()):
        name = place.removesuffix("/").removesuffix(".py").removeprefix("emsjax/")
        rooms[f"emsjax.{name}"] = {f"emsjax.{each}" for each in re.findall(r"\w+", names)}
    return rooms


ROOMS = permitted()


def folder_of(package: str) -> Path:
    for prefix, folder in MOVED.items():
        if within(package, prefix):
            return ROOT / folder / package.removeprefix(prefix).strip(".").replace(".", "/")
    return ROOT / package.replace(".", "/")


def within(module: str, *packages: str) -> bool:
    """Whether the module is one of the packages, or inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def source_files() -> Iterator[tuple[str, Path]]:
    """Yields each source file with the name by which it is imported."""
    for package in ("emsjax", *MOVED):
        for path in sorted(folder_of(package).rglob("*.py")):
            parts = path.relative_to(folder_of(package)).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


SOURCES = dict(source_files())


def imports(module: str) -> set[str]:
    """Returns the modules that a file imports, anywhere in it.

    `from x import y` counts as `x.y` if that is a module, else as `x`.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(inner & SOURCES.keys() or {str(node.module)})
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def room_of(module: str) -> str:
    """Returns the folder of `emsjax` that holds a module, or the module itself if none does."""
    return ".".join(module.split(".")[:2])


def folder(module: str) -> str:
    """Returns the innermost folder of a module; a module directly in `emsjax/` is its own."""
    package = SOURCES[module].name == "__init__.py"
    inner = module if package else module.rpartition(".")[0]
    return module if inner == "emsjax" else inner


def circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Returns nodes that import each other in a circle, in order; empty if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name in SOURCES} - {module}


def test_the_checks_find_the_sources():
    assert {*COMMON, *API, *OUTSIDE} <= SOURCES.keys()
    assert {room_of(module) for module in SOURCES} == {"emsjax", *ROOMS, *COMMON}
    assert imports("emsjax.pallas_kernels.cache_update.api") == {
        "jax",
        "jax.numpy",
        "emsjax.pallas_kernels.backends",
        "emsjax.pallas_kernels.cache_update.cpu",
        "emsjax.pallas_kernels.cache_update.move",
        "emsjax.pallas_kernels.cache_update.reference",
        "emsjax.pallas_kernels.cache_update.tpu",
        "emsjax.pallas_kernels.cache_update.tpu_scales",
        "emsjax.pallas_kernels.checks",
        "emsjax.pallas_kernels.int8_cache",
        "emsjax.pallas_kernels.value_checks",
    }


@pytest.mark.parametrize("room", [*ROOMS, *COMMON])
def test_a_room_imports_what_the_map_says(room):
    inside = [module for module in SOURCES if within(module, room)]
    used = {room_of(name) for module in inside for name in ours(module)} - {room, *COMMON}
    assert used == ROOMS.get(room, set()), "CONTRIBUTING.md has other imports"


@pytest.mark.parametrize("room", OUTSIDE)
def test_rooms_that_compute_need_few_packages(room):
    inside = [module for module in SOURCES if within(module, room)]
    used = {name.split(".")[0] for module in inside for name in imports(module)}
    assert used - {"emsjax"} == OUTSIDE[room]


def test_models_see_only_the_kernels_api():
    inside = [module for module in SOURCES if within(module, "emsjax.models")]
    used = {name for module in inside for name in ours(module)}
    assert {name for name in used if within(name, "emsjax.pallas_kernels")} <= set(API)


def test_no_files_and_no_folders_import_each_other_in_a_circle():
    files = {module: ours(module) for module in SOURCES if module != "emsjax"}
    assert circle(files) == []
    folders: dict[str, set[str]] = {}
    for module, imported in files.items():
        others = {folder(name) for name in imported} - {folder(module)}
        folders.setdefault(folder(module), set()).update(others)
    assert circle(folders) == []


def test_only_the_root_imports_by_name():
    """An import by name, as the root's lazy classes need, would escape all checks of this file."""
    allowed = {"emsjax", "emsjax.__main__"}
    for module in SOURCES.keys() - allowed:
        assert "importlib.import_module" not in SOURCES[module].read_text(), module
        assert "import_module(" not in SOURCES[module].read_text(), module


def test_a_circle_is_found():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


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
    operations -= {f"emsjax.pallas_kernels.{name}" for name in ("report", "tune")}
    assert len(operations) >= 2
    for operation in operations:
        assert {f"{operation}.api", f"{operation}.reference"} <= SOURCES.keys()


def test_exported_names_exist_and_are_as_documented():
    documented = {
        "LLM",
        "CompletionOutput",
        "Logprob",
        "Piece",
        "Report",
        "RequestOutput",
        "SamplingParams",
        "StructuredOutputsParams",
        "Trace",
        "TraceStep",
        "UserError",
        "__version__",
        "join_hosts",
    }
    assert set(emsjax.__all__) == documented
    assert len(emsjax.__all__) == len(documented)
    for name in emsjax.__all__:
        assert getattr(emsjax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Llm'"):
        _ = emsjax.Llm


def test_every_folder_of_sources_is_packaged_and_every_package_exists():
    folders = {path.parent for path in SOURCES.values()}
    assert {folder_of(package) for package in PACKAGES} == folders
    assert len(PACKAGES) == len(folders)
    for folder in folders:
        assert (folder / "__init__.py").is_file(), folder
    mapping = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert mapping == {"emsjax": "emsjax", **MOVED}


@pytest.mark.parametrize("place", ["repository", "elsewhere", "next-to-models.py"])
def test_models_import_from_anywhere(place, tmp_path):
    code = "import emsjax.models as m, emsjax.pallas_kernels as p; print(m.__file__, p.__file__)"
    if place == "next-to-models.py":
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


def test_no_family_is_named_outside_its_file_and_the_registry():
    """What families share differs by the fields of `DecoderConfig` only."""
    from emsjax.models.registry import FAMILIES

    home = {name: family.config.__module__.rsplit(".")[-1] for name, family in FAMILIES.items()}
    for file in (ROOT / "models").glob("*.py"):
        constants = (node for node in ast.walk(ast.parse(file.read_text())))
        texts = {node.value for node in constants if isinstance(node, ast.Constant)}
        others = {name for name in texts & FAMILIES.keys() if home[name] != file.stem}
        assert not others, f"{file.name} names {others}"


def test_no_two_test_files_have_one_name():
    """Folders of tests are no packages, so pytest would import one file for both."""
    files: dict[str, Path] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        assert file.name not in files, f"{file} and {files[file.name]}"
        files[file.name] = file
