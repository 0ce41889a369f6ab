import pytest

for contract in ("contract_attention", "contract_cache_update"):
    pytest.register_assert_rewrite(f"tests.kernels.{contract}")
