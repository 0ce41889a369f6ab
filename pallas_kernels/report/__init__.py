"""What the TPU kernels compile to, read off the real TPU compiler; no TPU is needed."""
