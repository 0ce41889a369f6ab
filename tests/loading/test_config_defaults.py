"""The table of defaults says what `transformers` says, and leaves to it what it does not know."""

import random
from typing import Any

import pytest

from emsjax.errors import UserError
from emsjax.loading.families import family, model_config, supported
from emsjax.loading.hf.completed import completed_from_table
from emsjax.loading.hf.config import complete_config
from emsjax.loading.hf.defaults import DEFAULTS, type_of_transformers
from emsjax.loading.published import PUBLISHED
from emsjax.models.registry import FAMILIES

pytestmark = pytest.mark.usefixtures("real_models")


def from_table(given: dict[str, Any]) -> dict[str, Any] | None:
    return completed_from_table(given, family(given).harmless)


def class_of(name: str) -> Any:
    """Returns the class of `transformers` for the configuration of a model type."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[type_of_transformers(name)]


def by_transformers(given: dict[str, Any]) -> Any:
    return model_config(complete_config(given, supported(), "config.json"))


def test_the_table_has_every_family():
    assert DEFAULTS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_transformers(name: str):
    fields = class_of(name).__dataclass_fields__
    assert {key: fields[key].default for key in DEFAULTS[name]} == DEFAULTS[name]
    assert model_config(from_table({"model_type": name})) == by_transformers({"model_type": name})


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_models_are_as_by_transformers(name: str):
    completed = from_table(PUBLISHED[name])
    assert completed is not None
    assert model_config(completed) == by_transformers(PUBLISHED[name])


def families_with_layer_types() -> list[str]:
    return [n for n in DEFAULTS if "layer_types" in class_of(n).__dataclass_fields__]


@pytest.mark.parametrize("name", families_with_layer_types())
def test_layers_without_types_have_the_windows_that_transformers_gives_them(name: str):
    fields = class_of(name).__dataclass_fields__
    sizes = {"num_hidden_layers": 9, "sliding_window": 7, "max_window_layers": 4}
    sizes |= {"use_sliding_window": True}
    sizes = {key: value for key, value in sizes.items() if key in fields}
    kinds = class_of(name)(**sizes).layer_types
    windows = tuple(7 if kind == "sliding_attention" else 0 for kind in kinds)
    given = {"model_type": name} | sizes
    assert by_transformers(given).windows == windows
    completed = from_table(given)
    assert completed is None or model_config(completed).windows == windows


# Values that configurations give these keys, usual and unusual.
VALUES: dict[str, list[Any]] = {
    "num_key_value_heads": [1, 2, None],
    "head_dim": [16, None],
    "hidden_size": [64, 128],
    "n_embd": [64],
    "tie_word_embeddings": [True, False],
    "attention_bias": [True],
    "rope_theta": [500000.0, 500000, 0],
    "rope_scaling": [
        None,
        {"type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": None},
        {"rope_type": "yarn"},
    ],
    "rope_parameters": [None, {"rope_type": "default", "rope_theta": 5e5}, "x", [1]],
    "sliding_window": [None, 7],
    "use_sliding_window": [False, True],
    "max_window_layers": [1],
    "layer_types": [["full_attention"] * 32, 0],
    "final_logit_softcapping": [20.0, 20, None],
    "word_embed_proj_dim": [32, None],
    "n_inner": [96],
    "rms_norm_eps": [1e-5, 0],
    "partial_rotary_factor": [1.0, 0.5],
    "num_attention_heads": [4],
    "torch_dtype": ["float16"],
    "eos_token_id": [[1, 2]],
    "attention_dropout": [0.1],
    "clip_qkv": [8.0, 8],
    "sliding_window_pattern": [2, 0],
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_any_configuration_is_as_by_transformers(name: str):
    """Either the table gives the same sizes, or it leaves the configuration to `transformers`."""
    chance, answered = random.Random(name), 0
    for _ in range(200):
        keys = chance.sample(sorted(VALUES), chance.randrange(1, 4))
        given = {"model_type": name} | {key: chance.choice(VALUES[key]) for key in keys}
        completed = from_table(given)
        if completed is None:
            continue
        found, expected = (outcome(call, given) for call in (in_table, by_transformers))
        assert found == expected, given
        answered += 1
    assert answered > 20


def in_table(given: dict[str, Any]) -> Any:
    return model_config(from_table(given))


def outcome(call: Any, given: dict[str, Any]) -> Any:
    """Returns the sizes, or that the configuration is refused."""
    try:
        return call(given)
    except UserError:
        return "refused"


@pytest.mark.parametrize(
    "odd",
    [
        {"attn_logit_softcapping": 50.0},
        {"tie_word_embeddings": "yes"},
        {"vocab_size": "many"},
        {"use_sliding_window": True},
        {"rope_scaling": {"factor": 2.0}, "rope_parameters": {"factor": 4.0}},
    ],
)
def test_what_the_table_does_not_know_is_left_to_transformers(odd: dict[str, Any]):
    assert from_table({"model_type": "qwen2"} | odd) is None
