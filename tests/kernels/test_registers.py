"""The assembler's report on GPU kernels is read."""

from emsjax.pallas_kernels.report.registers import Registers, read_registers

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


def test_each_kernel_is_read():
    assert read_registers(TEXT) == [Registers("layer_matmul", 30, 0), Registers("other", 255, 20)]
    assert read_registers("") == []
