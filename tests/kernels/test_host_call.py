"""Foreign functions compiled by Numba: every item is computed once, and compiled code is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llvmlite import binding
from numba import carray, types
from numba.core.registry import cpu_target

from emsjax.host.compiling import KERNEL, when_compiling
from emsjax.pallas_kernels import host_call
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


def double(x):
    return 2 * x


def compile_double(kept):
    signature = types.int64(types.int64)
    return host_call._compile(double, signature, kept)


def test_a_kept_function_is_found_until_its_sources_change(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("first")

    def kept():
        return host_call._Kept("double", [source], str(tmp_path / "cache"))

    target = cpu_target.target_context
    assert kept().load_overload(None, target) is None
    compile_double(kept())
    found = compile_double(kept())
    assert found.cache_hits == 1
    assert found.ctypes(21) == 42

    source.write_text("second")
    assert kept().load_overload(None, target) is None


def test_what_is_not_kept_is_said_to_be_compiled(tmp_path):
    said: list[str] = []
    with when_compiling(said.append):
        for _ in range(2):
            compile_double(host_call._Kept("double", [], str(tmp_path)))
            assert said == [KERNEL]
    with when_compiling(said.append):
        compile_double(host_call._Kept("double", [], str(tmp_path)))
    assert said == [KERNEL]


@pytest.mark.parametrize("directory", [None, "file"])
def test_a_function_that_cannot_be_kept_works(tmp_path, directory):
    (tmp_path / "file").write_text("")
    kept = host_call._Kept("double", [], directory and str(tmp_path / directory))
    assert compile_double(kept).ctypes(2) == 4


def test_a_damaged_file_is_no_error(tmp_path):
    compile_double(host_call._Kept("double", [], str(tmp_path)))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert compile_double(host_call._Kept("double", [], str(tmp_path))).ctypes(2) == 4


def test_the_address_of_a_handler_is_a_symbol():
    add_one()
    assert binding.address_of_symbol("emsjax.tests.add_one.address")
