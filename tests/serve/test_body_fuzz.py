"""Fields of any kind and value: a request, or one short sentence."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.errors import UserError
from emsjax.requests.sampling_params import SamplingParams
from emsjax.serve.body import TRACE, Asked, chat_of, completion_of, read_fields
from emsjax.serve.errors import ApiError

NAMES = [field.name for field in fields(SamplingParams)]
NAMES += ["prompt", "messages", "stream", "stream_options", "echo", "top_logprobs", "tools"]
NAMES += ["max_completion_tokens", "response_format", "tool_choice", "user", "priority", "suffix"]
NAMES += ["chat_template_kwargs", "add_generation_prompt", "continue_final_message", "best_of"]
NAMES += [TRACE]
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
MESSAGE = st.fixed_dictionaries({"role": st.just("user"), "content": SIMPLE | st.lists(SIMPLE)})
VALUES = st.recursive(
    SIMPLE | MESSAGE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.sampled_from(["w7", ["w7"], [7], [[7], [8, 9]]]),
    "messages": st.lists(MESSAGE, min_size=1, max_size=2),
}


def refusal(read: Callable[[Any], Any], value: Any, kind: type) -> str:
    """Returns why a value is refused; empty if it is not, and is then read as a `kind`."""
    try:
        assert isinstance(read(value), kind)
    except (UserError, ApiError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("read", "needed"), [(completion_of, "prompt"), (chat_of, "messages")])
@settings(max_examples=200)
@given(st.data())
def test_fields(read: Any, needed: str, data: st.DataObject):
    chosen = data.draw(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
    given = {needed: data.draw(GOOD[needed] | VALUES), **chosen}
    given = {name: value for name, value in given.items() if value is not None}
    said = refusal(read, given, Asked)
    assert "\n" not in said
    assert len(said) < 500


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_bodies(raw: bytes):
    said = refusal(read_fields, raw, dict)
    assert not said or said.startswith("the body is")
