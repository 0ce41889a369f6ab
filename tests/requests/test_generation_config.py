"""Every key of a generation config is honoured, harmless, or refused by name."""

from typing import Any

import pytest
from transformers import GenerationConfig

from emsjax.errors import UserError
from emsjax.loading.hf.generation import GENERATION_KEYS, NEUTRAL
from emsjax.requests.request import configured_defaults, with_defaults
from emsjax.requests.sampling_params import SamplingParams


def defaults(*eos: int, **config: Any) -> dict[str, Any]:
    return configured_defaults(config, "m", eos)


def test_every_key_of_transformers_is_accounted_for() -> None:
    assert vars(GenerationConfig()).keys() - {"_original_object_hash"} <= GENERATION_KEYS
    assert GenerationConfig._get_default_generation_params().keys() <= GENERATION_KEYS


def test_the_defaults_of_transformers_are_neutral() -> None:
    given = GenerationConfig._get_default_generation_params()
    found = defaults(**given)
    assert found == {"top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}


def test_banned_tokens_and_the_shortest_text() -> None:
    found = defaults(2, suppress_tokens=[5, 6], bad_words_ids=[[7], [2]], min_new_tokens=40)
    assert found == {"banned_token_ids": [5, 6, 7], "min_tokens": 40}
    filled = with_defaults(SamplingParams(max_tokens=8), found)
    assert (filled.banned_token_ids, filled.min_tokens) == ((5, 6, 7), 8)
    own = SamplingParams(banned_token_ids=[1], min_tokens=0)
    assert with_defaults(own, found) == own


REFUSED = {
    "no_repeat_ngram_size": 3,
    "begin_suppress_tokens": [5],
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 2,
    "forced_decoder_ids": [[1, 5]],
    "bad_words_ids": [[5, 6]],
    "min_length": 10,
    "num_beams": 4,
    "penalty_alpha": 0.6,
    "typical_p": 0.9,
    "epsilon_cutoff": 1e-3,
    "eta_cutoff": 1e-3,
    "sequence_bias": [[[5], 1.0]],
    "guidance_scale": 2.0,
    "watermarking_config": {"bias": 2.0},
    "exponential_decay_length_penalty": [5, 1.1],
    "encoder_repetition_penalty": 1.2,
    "stop_strings": ["x"],
    "a_new_key": 1,
    "suppress_tokens": "five",
    "min_new_tokens": -1,
    "top_k": "many",
}


@pytest.mark.parametrize("key", REFUSED)
def test_refused_by_name(key: str) -> None:
    word = "min_tokens" if key == "min_new_tokens" else key
    with pytest.raises(UserError, match=word) as caught:
        defaults(**{key: REFUSED[key]})
    assert "the generation config of m" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", NEUTRAL)
def test_neutral_values_are_accepted(key: str) -> None:
    for value in (None, *NEUTRAL[key]):
        assert defaults(**{key: value}) == {}
