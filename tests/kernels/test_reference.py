"""The XLA backends keep the contracts of their operations."""

import pytest

from emsjax.pallas_kernels.ragged_attention import reference
from emsjax.pallas_kernels.ragged_attention.tuning import BLOCKS, Blocks
from tests.kernels.contract_attention import AttentionContract
from tests.kernels.contract_cache_update import CacheUpdateContract


class TestAttention(AttentionContract):
    """As tuned for this platform; 96 tokens of cache make blocks of 32."""

    backend = "reference"


class TestAttentionSeveralTilesAtOnce(AttentionContract):
    """As on GPU, with blocks so small that everything needs several, and a remainder.

    The bits of a row are those of this platform's products, hence its multiple of rows.
    """

    backend = "reference"
    cases = ("gqa", "prompts", "all", "bfloat16")

    @pytest.fixture(autouse=True)
    def _blocks(self, monkeypatch):
        blocks = Blocks(kv=16, q=4, tiles_at_once=3, row_multiple=BLOCKS["cpu"].row_multiple)
        monkeypatch.setattr(reference, "BLOCKS", {"cpu": blocks})


class TestCacheUpdate(CacheUpdateContract):
    backend = "reference"
