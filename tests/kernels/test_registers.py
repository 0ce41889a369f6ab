"""The assembler's report on GPU kernels is read."""

import importlib.metadata
from pathlib import Path

import pytest

from emsjax.loading.named import named_config
from emsjax.pallas_kernels.report.__main__ import main
from emsjax.pallas_kernels.report.registers import Registers, read_assembled, read_kernels
from emsjax.pallas_kernels.report.work import MODELS, WIDTHS, heads_of, weights_of
from tests.kernels.test_layer_matmul import weights_of as weights_by_config

TEXT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'layer_matmul_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for layer_matmul_mosaic_gpu_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 2 barriers, 1 bytes smem
ptxas info    : Compile time = 30.431 ms

ptxas info    : Compiling entry function 'other' for 'sm_90a'
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 1 bytes smem
"""
HOST = """declare void @mosaic_gpu_launch_kernel(ptr, i32, i32)
  call void @mosaic_gpu_launch_kernel(ptr %0, i32 4, i32 %3, i32 8, i32 0, i32 0, i32 0, i32 128, \
i32 1, i32 1, i32 103448, ptr %1, ptr %201)
""".replace("\\\n", "")


def test_each_kernel_is_read():
    found = list(read_assembled(TEXT, {"other": 7, "": 9}))
    assert found == [Registers("layer_matmul", 30, 0, 9), Registers("other", 255, 20, 7)]
    assert not list(read_assembled("", {}))


def test_the_files_of_mosaic_are_read(tmp_path: Path):
    (tmp_path / "layer_matmul_0.ptxas").write_text(TEXT.partition("\n\n")[0])
    (tmp_path / "layer_matmul_0.ll").write_text(HOST)
    assert read_kernels(tmp_path) == [Registers("layer_matmul", 30, 0, 103448)]
    (tmp_path / "layer_matmul_0.ll").write_text("")
    with pytest.raises(ValueError, match="starts no kernel"):
        read_kernels(tmp_path)


def test_kernels_of_xla_are_left_out(tmp_path: Path):
    (tmp_path / "module_0001.jit_call.1.ptx").write_text(".entry loop_negate_fusion(")
    assert read_kernels(tmp_path) == []


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch):
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(SystemExit, match=r"needs the package jax; install .* \[gpu-compiler\]"):
        main(["--topology", "a100"])


@pytest.mark.parametrize("model", MODELS)
def test_the_shapes_of_models_are_right(model: str):
    config = named_config(model)
    assert MODELS[model] == heads_of(config)
    assert WIDTHS[model] == (config.hidden_size, config.intermediate_size, config.gated)
    assert weights_of(model) == weights_by_config(model)
