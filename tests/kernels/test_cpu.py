"""The CPU kernel keeps the contract of ragged attention."""

from tests.kernels.contract_attention import CASES, AttentionContract


class TestAttention(AttentionContract):
    """Caches of 96 tokens are three blocks long."""

    backend = "cpu"
    cases = tuple(name for name in CASES if name != "float16")
