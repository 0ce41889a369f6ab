"""Phi-3's LongRoPE: texts beyond the trained length are refused, not computed with wrong angles."""

import pytest

from emsjax import LLM, SamplingParams, UserError
from emsjax.loading.families import model_config
from tests.tiny import TINY, checkpoint

pytest.importorskip("torch")
TRAINED = TINY["phi3"][1]["original_max_position_embeddings"]
SAID = TINY["phi3"][1]["max_position_embeddings"]


def test_the_longest_text_is_the_trained_length():
    with pytest.raises(UserError, match=f"max_model_len.*{TRAINED}"):
        LLM(str(checkpoint("phi3")), max_batch_size=1, max_model_len=TRAINED + 1)
    llm = LLM(str(checkpoint("phi3")), max_batch_size=1)
    assert llm.max_model_len == TRAINED < SAID
    with pytest.raises(UserError, match=f"{TRAINED}"):
        llm.generate([[5] * TRAINED], SamplingParams(max_tokens=4))


def test_without_longrope_all_positions_are_served():
    from transformers import AutoConfig

    settings = {key: value for key, value in TINY["phi3"][1].items() if key != "rope_parameters"}
    hf = AutoConfig.for_model("phi3", **settings).to_dict()
    assert model_config(hf).max_positions == SAID
