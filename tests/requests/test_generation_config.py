"""Every key of a generation config is honoured, harmless, or refused by name."""

from typing import Any

import pytest
from transformers import GenerationConfig

from emsjax.errors import UserError
from emsjax.loading.hf.generation import GENERATION_KEYS, NEUTRAL
from emsjax.requests.configured import read_configured
from emsjax.requests.sampling_params import SamplingParams


def defaults(**config: Any) -> dict[str, Any]:
    return dict(read_configured(config, "m").params)


def test_every_key_of_transformers_is_accounted_for() -> None:
    assert vars(GenerationConfig()).keys() - {"_original_object_hash"} <= GENERATION_KEYS
    assert GenerationConfig._get_default_generation_params().keys() <= GENERATION_KEYS


def test_the_defaults_of_transformers_are_neutral() -> None:
    given = GenerationConfig._get_default_generation_params()
    neutral = {"top_p": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    assert defaults(**given) == {"top_k": 50, **neutral}
    assert read_configured(given, "m").min_length == 0


def test_parameters_that_requests_leave_out() -> None:
    same = {
        "no_repeat_ngram_size": 3,
        "begin_suppress_tokens": [5],
        "bad_words_ids": [[7], [2], [5, 6]],
        "forced_bos_token_id": 1,
        "forced_eos_token_id": [2, 3],
    }
    configured = read_configured({"suppress_tokens": [5, 6], "min_new_tokens": 40, **same}, "m")
    assert configured.params == {"banned_token_ids": [5, 6], "min_tokens": 40, **same}
    filled = configured.fill(SamplingParams(max_tokens=8), 3)
    assert (filled.banned_token_ids, filled.min_tokens) == ((5, 6), 8)
    assert filled.bad_words_ids == ((7,), (2,), (5, 6))
    assert (filled.short_bad_words, filled.long_bad_words) == ((7, 2), ((5, 6),))
    assert (filled.forced_bos_token_id, filled.forced_eos_token_id) == ((1,), (2, 3))
    none = dict.fromkeys(same, ()) | {"no_repeat_ngram_size": 0}
    own = SamplingParams(banned_token_ids=[1], min_tokens=0, **none)
    assert configured.fill(own, 3) == own


@pytest.mark.parametrize(
    ("config", "prompt_len", "expected"),
    [
        ({"min_length": 9}, 4, 5),
        ({"min_length": 9}, 9, None),
        ({"min_length": 99}, 4, 8),
        ({"min_length": 9, "min_new_tokens": 3}, 4, 3),
        ({"min_length": 9, "min_new_tokens": 0}, 4, 0),
        ({}, 4, None),
    ],
)
def test_the_least_length(config: dict, prompt_len: int, expected: int | None) -> None:
    filled = read_configured(config, "m").fill(SamplingParams(max_tokens=8), prompt_len)
    assert filled.min_tokens == expected


REFUSED = {
    "forced_decoder_ids": [[1, 5]],
    "num_beams": 4,
    "cache_implementation": "quantized",
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
    "no_repeat_ngram_size": -1,
    "begin_suppress_tokens": list(range(33)),
    "forced_bos_token_id": "one",
    "forced_eos_token_id": [-2],
    "bad_words_ids": [[5, 6], []],
    "min_length": -1,
}
REFUSED_ALIKE = (
    {"bad_words_ids": 5},
    {"bad_words_ids": ["ab"]},
    {"bad_words_ids": [[5, -1]]},
    {"bad_words_ids": [list(range(9))]},
    {"bad_words_ids": [[1, n] for n in range(33)]},
    {"forced_eos_token_id": list(range(17))},
    {"forced_eos_token_id": True},
    {"forced_eos_token_id": 2, "suppress_tokens": [2]},
    {"min_length": True},
    {"min_length": 2**31},
)


@pytest.mark.parametrize("key", REFUSED)
def test_refused_by_name(key: str) -> None:
    word = {"min_new_tokens": "min_tokens", "suppress_tokens": "banned_token_ids"}.get(key, key)
    with pytest.raises(UserError, match=word) as caught:
        defaults(**{key: REFUSED[key]})
    assert "the generation config of m" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("config", REFUSED_ALIKE, ids=str)
def test_values_out_of_range(config: dict[str, Any]) -> None:
    word = "bad_word|bad word" if "bad_words_ids" in config else next(iter(config))
    with pytest.raises(UserError, match=word) as caught:
        defaults(**config)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", NEUTRAL)
def test_neutral_values_are_accepted(key: str) -> None:
    for value in (None, *NEUTRAL[key]):
        assert defaults(**{key: value}) == {}
