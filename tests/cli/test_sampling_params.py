import dataclasses

import pytest

from emsjax.errors import UserError
from emsjax.sampling_params import SamplingParams


def test_the_defaults_are_greedy():
    params = SamplingParams()
    assert (params.max_tokens, params.temperature, params.ignore_eos) == (16, 0.0, False)


def test_it_is_frozen_and_hashable():
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
        {"min_tokens": 1},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"stop": "\n"},
        {"stop": ["a"]},
        {"logprobs": 0},
        {"n": 2},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"logit_bias": {3: 1.0}},
        {"temperature": False},
        {"n": True},
        {"temperature": "hot"},
    ],
)
def test_what_is_not_there_yet_is_refused_by_name(options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=f"^{name}=.*not there yet") as caught:
        SamplingParams(**options)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
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
    ],
)
def test_what_changes_nothing_is_accepted(options):
    SamplingParams(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 is out of range"),
        ({"max_tokens": -1}, "max_tokens=-1 is out of range"),
        ({"max_tokens": 2**31}, "out of range"),
        ({"max_tokens": True}, "max_tokens=True must be a whole number"),
        ({"max_tokens": 5.0}, "max_tokens=5.0 must be a whole number"),
        ({"max_tokens": None}, "max_tokens=None must be a whole number"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"seed": "x"}, "seed='x' must be a whole number"),
        ({"ignore_eos": 1}, "ignore_eos=1 must be true or false"),
        ({"stop_token_ids": 5}, "stop_token_ids=5 must be a list"),
        ({"stop_token_ids": "5"}, "stop_token_ids='5' must be a list"),
        ({"stop_token_ids": [-1]}, "a stop_token_ids entry=-1 is out of range"),
        ({"stop_token_ids": [True]}, "must be a whole number"),
    ],
)
def test_wrong_types_and_ranges_are_told(options, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**options)


def test_a_mapping_goes_over_the_defaults():
    defaults = SamplingParams(max_tokens=3, ignore_eos=True)
    assert SamplingParams.from_mapping({"max_tokens": 5}, defaults) == SamplingParams(
        max_tokens=5, ignore_eos=True
    )
    assert SamplingParams.from_mapping({}) == SamplingParams()


def test_an_unknown_name_is_told():
    with pytest.raises(UserError, match="'max_token' is not a sampling parameter"):
        SamplingParams.from_mapping({"max_token": 5})
