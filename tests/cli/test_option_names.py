"""Messages of the Python interface, as the command line shows them."""

import pytest

from emsjax.cli.option_names import name_options

OPTIONS = {
    "max_tokens": "--max-tokens",
    "seed": "--seed",
    "n": "--n",
    "max_batch_size": "--batch-size",
    "draft_model": "--draft-model",
}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_tokens=0 is out of range", "--max-tokens 0 is out of range"),
        ("lower max_batch_size, please", "lower --batch-size, please"),
        ("n=2 outputs need a seed", "--n 2 outputs need a seed"),
        ("seed=-1", "--seed -1"),
        ("--max-tokens 3", "--max-tokens 3"),
        ("'max_tokens' and \"seed=1\"", "'max_tokens' and \"seed=1\""),
        ("/home/max_tokens/x and max_tokens/y", "/home/max_tokens/x and max_tokens/y"),
        ("my_max_tokens and max_tokens_x", "my_max_tokens and max_tokens_x"),
        ("name a draft_model.", "name a --draft-model."),
    ],
)
def test_parameters_become_options(message: str, shown: str):
    assert name_options(message, OPTIONS) == shown


def test_without_options_nothing_changes():
    assert name_options("max_tokens=0", {}) == "max_tokens=0"
