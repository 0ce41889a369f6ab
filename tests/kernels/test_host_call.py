"""Foreign functions compiled by Numba: every item is computed once, and compiled code is kept."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llvmlite import binding
from numba import carray, types
from numba.core.registry import cpu_target

from emsjax.host.compiling import KERNEL, when_compiling
from emsjax.pallas_kernels import foreign, host_call, kept_functions
from emsjax.pallas_kernels.host_call import argument, compiled, pointer, register, result, size


@compiled
def count_rows(frame):
    return size(frame, 0, 0)


@compiled
def add_row(frame, row):
    shape = (size(frame, 0, 0), size(frame, 0, 1))
    x = carray(pointer(argument(frame, 0)), shape, np.float32)
    out = carray(pointer(result(frame, 0)), shape, np.float32)
    for column in range(shape[1]):
        out[row, column] = x[row, column] + 1


@functools.cache
def add_one():
    register("emsjax.tests.add_one", count_rows, add_row, [__file__])
    return lambda x: jax.ffi.ffi_call(
        "emsjax.tests.add_one", jax.ShapeDtypeStruct(x.shape, x.dtype)
    )(x)


@pytest.mark.parametrize("rows", [0, 1, 2, 999])
def test_every_item_is_computed(rows):
    x = jnp.arange(rows * 3, dtype=jnp.float32).reshape(rows, 3)
    np.testing.assert_array_equal(jax.jit(add_one())(x), x + 1)


def test_calls_follow_each_other_in_a_loop():
    """Threads that come late to one call must not touch the next."""
    start = jnp.zeros((64, 3), jnp.float32)
    out = jax.jit(lambda x: jax.lax.fori_loop(0, 5000, lambda _, x: add_one()(x), x))(start)
    np.testing.assert_array_equal(out, start + 5000)


EXIT = """
import jax, jax.numpy as jnp
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul


def run(x, kernels):
    def step(i, x):
        return layer_matmul(x, kernels, layer=i % 2, backend="cpu")[:, :512] / 512

    return jax.lax.fori_loop(0, 150, step, x)


out = jax.jit(run)(jnp.ones((33, 512)), jnp.ones((2, 4096, 512)))
"""


def test_a_process_may_end_while_a_program_runs():
    """XLA's threads go on calling the kernel while Python empties its modules."""
    command = [sys.executable, "-c", EXIT]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_functions_of_one_name_stay_apart():
    """A process that forks passes on the numbers that tell functions of one name apart."""

    def make():
        def function():
            return 0

        return kept_functions.with_unique_name(function)

    assert make().__qualname__ != make().__qualname__


def double(x):
    return 2 * x


def compile_double(kept):
    signature = types.int64(types.int64)
    return kept_functions.compile_for_c(double, signature, kept)


def test_a_kept_function_is_found_until_its_sources_change(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("first")

    def kept():
        return kept_functions.Kept("double", [source], str(tmp_path / "cache"))

    target = cpu_target.target_context
    assert kept().load_overload(None, target) is None
    compile_double(kept())
    found = compile_double(kept())
    assert found.cache_hits == 1
    assert found.ctypes(21) == 42

    source.write_text("second")
    assert kept().load_overload(None, target) is None


KEEP = """
import sys, jax, jax.numpy as jnp, numpy as np
from numba import carray
from emsjax.pallas_kernels.host_call import argument, compiled, pointer, register, result

jax.config.update("jax_compilation_cache_dir", sys.argv[1])


def kernel(amount):
    @compiled
    def count(frame):
        return 1

    @compiled
    def add(frame, item):
        x = carray(pointer(argument(frame, 0)), (1,), np.float32)
        carray(pointer(result(frame, 0)), (1,), np.float32)[0] = x[0] + amount

    name = f"test.add{amount}"
    register(name, count, add, [])
    return float(jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((1,), jnp.float32))(jnp.zeros(1))[0])


print([kernel(int(amount)) for amount in sys.argv[2:]])
"""


def test_functions_that_several_processes_kept_stay_apart(tmp_path):
    """Each process numbers its functions from 1."""

    def run(*amounts):
        command = [sys.executable, "-c", KEEP, str(tmp_path), *amounts]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert run("1") == "[1.0]"
    assert run("2") == "[2.0]"
    assert len(list(tmp_path.glob("*.numba"))) == 6
    assert run("1", "2") == "[1.0, 2.0]"


def test_what_is_not_kept_is_said_to_be_compiled(tmp_path):
    said: list[str] = []
    with when_compiling(said.append):
        for _ in range(2):
            compile_double(kept_functions.Kept("double", [], str(tmp_path)))
            assert said == [KERNEL]
    with when_compiling(said.append):
        compile_double(kept_functions.Kept("double", [], str(tmp_path)))
    assert said == [KERNEL]


@pytest.mark.parametrize("directory", [None, "file"])
def test_a_function_that_cannot_be_kept_works(tmp_path, directory):
    (tmp_path / "file").write_text("")
    kept = kept_functions.Kept("double", [], directory and str(tmp_path / directory))
    assert compile_double(kept).ctypes(2) == 4


def test_a_damaged_file_is_no_error(tmp_path):
    compile_double(kept_functions.Kept("double", [], str(tmp_path)))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert compile_double(kept_functions.Kept("double", [], str(tmp_path))).ctypes(2) == 4


def test_a_file_with_damaged_code_is_not_loaded(tmp_path):
    """Code that was damaged would end the process, now or when it is called."""
    compile_double(kept_functions.Kept("double", [], str(tmp_path)))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    found = compile_double(kept_functions.Kept("double", [], str(tmp_path)))
    assert found.cache_hits == 0
    assert found.ctypes(2) == 4
    assert compile_double(kept_functions.Kept("double", [], str(tmp_path))).cache_hits == 1


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def full(file, target):
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    assert compile_double(kept_functions.Kept("double", [], str(tmp_path))).ctypes(2) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_function_that_cannot_be_written_down_works(tmp_path, monkeypatch):
    def fail(_):
        raise TypeError("cannot pickle")

    monkeypatch.setattr(kept_functions, "dumps", fail)
    assert compile_double(kept_functions.Kept("double", [], str(tmp_path))).ctypes(2) == 4
    assert list(tmp_path.iterdir()) == []


def test_options_of_numba_and_another_python_make_another_file(tmp_path, monkeypatch):
    compile_double(kept_functions.Kept("double", [], str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_OPT", "0")
        assert compile_double(kept_functions.Kept("double", [], str(tmp_path))).cache_hits == 0
    monkeypatch.setattr("sys.version", "4.0")
    assert compile_double(kept_functions.Kept("double", [], str(tmp_path))).cache_hits == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"jax_compilation_cache_dir": "/some/place"}, "/some/place"),
        ({"jax_compilation_cache_dir": None}, None),
        ({"jax_compilation_cache_dir": "gs://bucket/cache"}, None),
        (
            {"jax_compilation_cache_dir": "/some/place", "jax_enable_compilation_cache": False},
            None,
        ),
    ],
)
def test_functions_are_kept_where_jax_keeps_programs_on_this_machine(settings, expected):
    before = {name: jax.config.values[name] for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        assert foreign.kept_in() == expected
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("version", [(0, 3), (0, 9), (1, 0)])
def test_a_handler_is_made_for_major_version_0(version):
    """XLA then refuses it once the layout of its structures has changed."""
    add_one()
    api, frame, metadata, extension = np.zeros((4, 8), np.int64)
    api[4:5].view(np.int32)[:] = version
    frame[:3] = 1, extension.ctypes.data, api.ctypes.data
    extension[3] = metadata.ctypes.data
    _, handler, *_ = host_call._ALIVE["emsjax.tests.add_one"]
    assert handler.ctypes(frame.ctypes.data) == 0
    assert metadata[3:4].view(np.int32).tolist() == [0, version[1]]


def test_the_addresses_of_a_kernel_are_a_symbol():
    add_one()
    assert binding.address_of_symbol("emsjax.tests.add_one.addresses")
