"""Claims in the README about other projects, as far as they can be tested."""

import re
from pathlib import Path

import pytest

from tests.tiny import oracle

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_transformers_refuses_prompt_lookup_for_a_batch():
    torch = pytest.importorskip("torch")
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])
    settings = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 4, "pad_token_id": 0}
    with pytest.raises(ValueError, match="batch_size") as refused:
        oracle("llama").generate(prompts, prompt_lookup_num_tokens=3, **settings)
    assert re.sub(r"\s+", " ", str(refused.value)) in README
