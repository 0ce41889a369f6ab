"""Whatever is given as prompt, parameters or options ends in a request or in one short sentence."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax import SamplingParams, UserError
from emsjax.build_drafter import check_drafting
from emsjax.loading.load import LoadedModel
from emsjax.requests.chat import ChatOptions
from emsjax.requests.prompts import conversations, prompt_list
from emsjax.requests.reader import RequestReader
from emsjax.requests.request import Request
from emsjax.requests.speculative_config import SPECULATIVE_CONFIG, drafting_options
from emsjax.requests.vllm_llm import LLM_OPTIONS
from emsjax.requests.vllm_names import takes_vllm_names
from emsjax.requests.vllm_requests import SAMPLING_PARAMS
from tests.fuzzing import FUZZ, is_one_sentence
from tests.tiny import VOCAB_SIZE, words

LENGTH = 64
NAMES = ("role", "content", "type", "text", "prompt", "prompt_token_ids", "messages", "user")


def huge() -> int:
    """An integer that Python refuses to format."""
    return 10**5000


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, VOCAB_SIZE),
    st.builds(huge),
    st.floats(),
    st.sampled_from((*NAMES, "", "w7 w8", "\ud800", "x" * 1000, b"ab", object(), 1j)),
)
keys = st.sampled_from((*NAMES, "multi_modal_data", "x" * 1000, 5, None))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
texts = st.sampled_from(("w7", "", "w8 w9")) | values
messages = st.fixed_dictionaries({"role": texts, "content": texts | st.lists(texts, max_size=2)})


@pytest.fixture(scope="module")
def reader() -> RequestReader:
    model: Any = SimpleNamespace()
    loaded = LoadedModel(model, words(), (2,), "tiny", {}, {})
    return RequestReader(loaded, VOCAB_SIZE, LENGTH, 0)


def check(make: Any) -> Any:
    """Calls a function, which may raise one short sentence."""
    try:
        return make()
    except UserError as error:
        is_one_sentence(str(error), make)
    return None


def names(*tables: Any) -> list[str]:
    return [name for table in tables for entry in table for name in entry.names]


@FUZZ
@given(values | st.lists(messages | values, max_size=2))
def test_any_prompts(reader: RequestReader, prompts: Any):
    for prompt in check(lambda: prompt_list(prompts)) or ():
        request = check(lambda prompt=prompt: reader.read(prompt, SamplingParams(), "0"))
        assert request is None or isinstance(request, Request)


PARAMETERS = tuple(SamplingParams.__dataclass_fields__)
OPTIONS = {
    "chat_template": st.none()
    | st.sampled_from(("w7", "{{ tools }}", "{{", "{{ 1 / 0 }}"))
    | values,
    "add_generation_prompt": st.booleans() | values,
    "continue_final_message": st.booleans() | values,
    "tools": st.none() | st.lists(values, max_size=2) | values,
    "chat_template_kwargs": st.none() | values,
}


@FUZZ
@given(st.lists(messages, max_size=2) | values, st.fixed_dictionaries({}, optional=OPTIONS))
def test_any_chat(reader: RequestReader, given_messages: Any, options: dict[str, Any]):
    def read() -> None:
        chat = ChatOptions(**options)
        for conversation in conversations(given_messages):
            reader.read(conversation, SamplingParams(), "0", chat)

    check(read)


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(
            (*SamplingParams.__dataclass_fields__, *names(SAMPLING_PARAMS), "max_token")
        ),
        values,
        max_size=3,
    )
)
def test_any_sampling_params(reader: RequestReader, given_params: dict[str, Any]):
    params = check(lambda: SamplingParams(**given_params))
    if params is not None:
        check(lambda: reader.read("w7", params, "0"))


@FUZZ
@given(
    st.dictionaries(st.sampled_from((*names(LLM_OPTIONS), "mode", "x" * 1000)), values, max_size=2),
    values
    | st.dictionaries(
        st.sampled_from(
            (
                "method",
                "model",
                "num_speculative_tokens",
                "prompt_lookup_max",
                "prompt_lookup_min",
                *names(SPECULATIVE_CONFIG),
                5,
                "x" * 1000,
            )
        ),
        st.sampled_from(("ngram", "draft_model", "eagle")) | values,
        max_size=3,
    ),
)
def test_any_options(given_options: dict[str, Any], config: Any):
    check(lambda: takes_vllm_names("an option", LLM_OPTIONS)(lambda: None)(**given_options))

    def draft() -> None:
        options = drafting_options({"drafter": None}, config)
        check_drafting("ems", options.pop("drafter"), options)

    check(draft)
