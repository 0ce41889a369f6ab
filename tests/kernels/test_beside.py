"""A kernel is compiled in another process, once, and nothing depends on it."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from emsjax.pallas_kernels import beside
from emsjax.pallas_kernels.beside import compile_beside, wait_for
from emsjax.pallas_kernels.ragged_attention import cpu, cpu_kernel

NAME = "emsjax.layer_matmul.float32"


@pytest.fixture
def kept_at(tmp_path, monkeypatch):
    """An empty directory for compiled kernels, and no process that runs already."""
    monkeypatch.setattr(beside, "_RUNNING", {})
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_kernel_is_kept_by_another_process(kept_at):
    compile_beside("layer_matmul", "float32")
    assert list(beside._RUNNING) == [NAME]
    wait_for(NAME)
    assert {path.name.split("-")[0] for path in kept_at.glob("*.numba")} == {
        f"{NAME}.{part}" for part in ("count", "run", "handle")
    }
    compile_beside("layer_matmul", "float32")  # it is kept already
    assert not beside._RUNNING


def test_a_process_that_fails_is_no_error(kept_at):
    compile_beside("nothing", "float32")
    wait_for("emsjax.nothing.float32")
    assert not list(kept_at.iterdir())


def test_a_process_that_hangs_is_ended(kept_at, monkeypatch):
    monkeypatch.setattr(beside, "_WAIT_S", 0.01)
    hanging = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    beside._RUNNING[NAME] = hanging
    wait_for(NAME)
    assert hanging.returncode
    assert hanging.stdin is not None
    hanging.stdin.close()


def test_a_process_that_cannot_be_started_is_no_error(kept_at, monkeypatch):
    def fail(*_args, **_options):
        raise OSError

    monkeypatch.setattr(beside.subprocess, "Popen", fail)
    compile_beside("layer_matmul", "float32")
    wait_for(NAME)


@pytest.mark.usefixtures("kept_at")
def test_types_without_kernels_start_nothing():
    compile_beside("layer_matmul", "float16")
    assert not beside._RUNNING


@pytest.mark.usefixtures("kept_at")
def test_other_platforms_start_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    compile_beside("layer_matmul", "float32")
    assert not beside._RUNNING


@pytest.mark.usefixtures("kept_at")
def test_nothing_is_compiled_that_nothing_keeps():
    jax.config.update("jax_compilation_cache_dir", None)
    compile_beside("layer_matmul", "float32")
    assert not beside._RUNNING


def test_attention_waits_for_the_process_that_compiles_it(monkeypatch):
    called = []
    monkeypatch.setattr(cpu, "wait_for", lambda name: called.append(("wait", name)))
    monkeypatch.setattr(
        cpu_kernel, "register_kernel", lambda name, _: called.append(("make", name))
    )
    cpu._load()("a kernel", np.dtype("float32"))
    assert called == [("wait", "a kernel"), ("make", "a kernel")]
