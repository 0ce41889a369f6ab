import dataclasses

import pytest

from emsjax.errors import UserError
from emsjax.requests.sampling_params import SamplingParams


def test_the_defaults_are_greedy():
    params = SamplingParams()
    assert (params.max_tokens, params.temperature, params.ignore_eos) == (16, 0.0, False)


def test_parameters_are_frozen_and_hashable():
    ids = [3, 4]
    params = SamplingParams(stop_token_ids=ids)
    ids.append(5)
    assert params.stop_token_ids == (3, 4)
    assert hash(params) == hash(SamplingParams(stop_token_ids=(3, 4)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.max_tokens = 2


@pytest.mark.parametrize(
    "options",
    [
        {"min_tokens": 16},
        {"temperature": 0.7},
        {"temperature": 2},
        {"temperature": 0.6, "adapt_temperature": 0.8},
        {"top_k": -1},
        {"top_p": 1e-9},
        {"min_p": 1},
        {"stop": "\n"},
        {"stop": ["a", "bc"]},
        {"bad_words": ["a", "bc"]},
        {"include_stop_str_in_output": True},
        {"logprobs": 0},
        {"logprobs": 20},
        {"n": 2, "temperature": 1},
        {"n": 2, "temperature": 1, "adapt_temperature": 0},
        {"temperature": 1e-6},
        {"stop_token_ids": [3], "allowed_token_ids": [3, 4], "banned_token_ids": [4]},
        {"presence_penalty": -2},
        {"frequency_penalty": 2},
        {"repetition_penalty": 0.5},
        {"logit_bias": {3: 1, "4": -2.5}},
        {"allowed_token_ids": [3], "banned_token_ids": [4]},
    ],
)
def test_valid_parameters_can_be_hashed_and_changed(options):
    params = SamplingParams(**options)
    hash(params)
    changed = dataclasses.replace(params, max_tokens=17)
    assert changed == SamplingParams(**options | {"max_tokens": 17})
    assert params.samples == bool(options.keys() & {"temperature", "adapt_temperature"})


def test_equivalent_forms_are_equal():
    assert SamplingParams(stop="a") == SamplingParams(stop=["a"])
    assert SamplingParams(logit_bias={"4": -2, 3: 1}).biases == {3: 1.0, 4: -2.0}
    assert SamplingParams().biases == {}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0, "adapt_temperature": 0},
        {"temperature": 0, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "seed": 3},
        {"n": 1, "top_k": 1},
        {"top_p": 1},
        {"repetition_penalty": 1},
        {"stop": []},
        {"stop": None},
        {"logit_bias": {}},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"stop_token_ids": []},
        {"stop_token_ids": range(3)},
        {"max_tokens": 2**31 - 1},
        {"max_tokens": None, "min_tokens": 100},
        {"bad_words": []},
    ],
)
def test_values_without_effect_are_accepted(options):
    SamplingParams(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 is out of range"),
        ({"max_tokens": -1}, "max_tokens=-1 is out of range"),
        ({"max_tokens": 2**31}, "out of range"),
        ({"max_tokens": True}, "max_tokens=True must be a whole number"),
        ({"max_tokens": 5.0}, "max_tokens=5.0 must be a whole number"),
        ({"max_tokens": "all"}, "max_tokens='all' must be a whole number"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"seed": "x"}, "seed='x' must be a whole number"),
        ({"temperature": False}, "temperature=False must be a number"),
        ({"temperature": "hot"}, "temperature='hot' must be a number"),
        ({"temperature": None}, "temperature=None must be a number"),
        ({"temperature": float("nan")}, "temperature=nan is out of range"),
        ({"temperature": float("inf")}, "temperature=inf is out of range"),
        ({"top_k": -2}, "top_k=-2 is out of range"),
        ({"top_k": 2.0}, "top_k=2.0 must be a whole number"),
        ({"top_p": 0}, "top_p=0 is out of range; give a number above 0 to 1"),
        ({"top_p": 1.01}, "top_p=1.01 is out of range"),
        ({"min_p": -0.1}, "min_p=-0.1 is out of range; give a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 is out of range"),
        ({"repetition_penalty": 1e-38}, "repetition_penalty=1e-38 is out of range"),
        ({"temperature": 10**5000}, "out of range"),
        ({"stop_token_ids": [10**5000]}, "out of range"),
        ({"logit_bias": {"9" * 5000: 1}}, "must be a whole number"),
        ({"logit_bias": (1, 2)}, "must map token ids to numbers"),
        ({"logit_bias": {"5": 1, 5: 2}}, "logit_bias has the token id 5 twice"),
        ({"presence_penalty": 2.1}, "presence_penalty=2.1 is out of range"),
        ({"n": True}, "n=True must be a whole number"),
        ({"n": 0}, "n=0 is out of range"),
        ({"n": 2}, "n=2 outputs would all be the same at temperature 0"),
        ({"n": 2, "temperature": 1, "top_k": 1}, "would all be the same with top_k=1; give a l"),
        ({"n": 2, "temperature": 1, "min_p": 1}, "would all be the same with min_p=1; give a s"),
        (
            {"temperature": 1e-7},
            "temperature=1e-07 is too small to differ from 0; give 0, or at lea",
        ),
        (
            {"temperature": 0.6, "adapt_temperature": 1e-50},
            "adapt_temperature=1e-50 is too small to differ from 0",
        ),
        ({"adapt_temperature": 0.8}, "adapt_temperature=0.8 needs a temperature above 0"),
        ({"n": 2, "adapt_temperature": 1}, "adapt_temperature=1 needs a temperature above 0"),
        (
            {"stop_token_ids": [5], "banned_token_ids": [5]},
            "stop_token_ids has token id 5, which banned_token_ids has too",
        ),
        (
            {"stop_token_ids": [5], "allowed_token_ids": [6]},
            "stop_token_ids has token id 5, which is not in allowed_token_ids",
        ),
        (
            {"logit_bias": {5: 1}, "banned_token_ids": [5]},
            "logit_bias has token id 5, which banned_token_ids has too",
        ),
        (
            {"logit_bias": {5: 1}, "allowed_token_ids": [6]},
            "logit_bias has token id 5, which is not in allowed_token_ids",
        ),
        ({"stop": "a\ud800"}, "has half a surrogate pair, which no text contains"),
        ({"min_tokens": 17}, "min_tokens=17 is more than max_tokens=16"),
        ({"logprobs": 21}, "logprobs=21 is out of range; give a number from 0 to 20"),
        ({"logprobs": True}, "logprobs=True must be a whole number"),
        ({"stop": ""}, "a stop string is empty"),
        ({"stop": ["a", ""]}, "a stop string is empty"),
        ({"stop": [3]}, "a stop string is 3; it must be text"),
        ({"stop": 3}, "stop=3 must be text or a list of texts"),
        ({"stop": b"x"}, "must be text or a list of texts"),
        ({"logit_bias": [3]}, "must map token ids to numbers"),
        ({"logit_bias": {-3: 1}}, "a token id of logit_bias=-3 is out of range"),
        ({"logit_bias": {3: "x"}}, "a value of logit_bias='x' must be a number"),
        ({"logit_bias": {3: float("inf")}}, "a value of logit_bias=inf is out of range"),
        ({"allowed_token_ids": []}, "leave no token to choose"),
        ({"allowed_token_ids": [1], "banned_token_ids": [1, 2]}, "leave no token to choose"),
        ({"banned_token_ids": 3}, "banned_token_ids=3 must be a list"),
        ({"ignore_eos": 1}, "ignore_eos=1 must be true or false"),
        ({"stop_token_ids": 5}, "stop_token_ids=5 must be a list"),
        ({"stop_token_ids": "5"}, "stop_token_ids='5' must be a list"),
        ({"stop_token_ids": [-1]}, "a stop_token_ids entry=-1 is out of range"),
        ({"stop_token_ids": [True]}, "must be a whole number"),
        ({"detokenize": None}, "detokenize=None must be true or false"),
        ({"skip_special_tokens": 0}, "skip_special_tokens=0 must be true or false"),
        ({"detokenize": False, "stop": "a"}, "stop needs the text"),
        ({"detokenize": False, "include_stop_str_in_output": True}, "needs the text"),
        ({"detokenize": False, "skip_special_tokens": False}, "needs the text"),
        ({"bad_words": [""]}, "a bad word is empty"),
        ({"bad_words": 3}, "bad_words=3 must be text or a list of texts"),
    ],
)
def test_invalid_values_are_reported(options, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**options)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SamplingParams)])
def test_any_value_is_taken_or_refused_in_one_short_sentence(name):
    deep = []
    for _ in range(5000):
        deep = [deep]
    long = "x" * 9999
    numbers = [True, -1, 0, 1, 2**40, 10**5000, -0.0, 1e-50, 1e300, float("nan")]
    others = ["", long, b"x", [], [[]], [long], [10**5000], {long: 1}, {}, {3}, object(), deep]
    messages = [_refusal({name: value}) for value in (None, *numbers, *others)]
    assert max(map(len, messages)) < 500
    assert not any("\n" in message for message in messages)


def _refusal(options) -> str:
    try:
        SamplingParams(**options)
    except UserError as error:
        return str(error)
    return ""


def test_parameters_by_name():
    assert SamplingParams.from_mapping({"max_tokens": 5}) == SamplingParams(max_tokens=5)
    assert SamplingParams.from_mapping({}) == SamplingParams()


def test_an_unknown_name_is_reported():
    with pytest.raises(UserError, match="'max_token' is not a sampling parameter"):
        SamplingParams.from_mapping({"max_token": 5})
