import pytest

for contract in ("contract_attention", "contract_cache_update", "contract_layer_matmul"):
    pytest.register_assert_rewrite(f"tests.kernels.{contract}")
