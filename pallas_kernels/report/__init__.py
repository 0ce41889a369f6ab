"""Reports what the TPU kernels compile to, from the real TPU compiler; no TPU is needed."""
