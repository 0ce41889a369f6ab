import pytest

for module in ("contract_attention", "contract_cache_update", "contract_layer_matmul", "lowering"):
    pytest.register_assert_rewrite(f"tests.kernels.{module}")
