import pytest

CONTRACTS = ("attention", "cache_update", "expert_matmul", "layer_matmul")
for module in (*(f"contract_{name}" for name in CONTRACTS), "lowering"):
    pytest.register_assert_rewrite(f"tests.kernels.{module}")
