"""Whatever a chat template or a tokenizer raises is a `UserError` of one short sentence."""

import json

import pytest

from emsjax.errors import UserError, foreign
from emsjax.loading.load import LoadedModel
from emsjax.requests import jsonl
from emsjax.requests.reader import RequestReader
from emsjax.requests.sampling_params import SamplingParams
from tests.tiny import words

MESSAGES = [{"role": "user", "content": "w7"}]


class OwnError(Exception):
    pass


class UnspeakableError(Exception):
    def __str__(self):
        raise ValueError("no message")


class PanicException(BaseException):
    """Named like that of a library in Rust."""


def recurse(*_, **__):
    return recurse()


RAISED = [
    ValueError("no\nsystem \x1b[31mrole"),
    ZeroDivisionError("division by zero"),
    OwnError("x" * 10_000),
    UnspeakableError(),
    UnicodeEncodeError("utf-8", "\ud800" * 999, 0, 1, "surrogates"),
    StopIteration(3),
    OverflowError(),
    PanicException("index out of bounds"),
]


def raising(error):
    def call(*_, **__):
        raise error

    return call


def reader(tokenizer):
    loaded = LoadedModel(None, tokenizer, (2,), "tiny", {}, {})
    return RequestReader(loaded, 101, 64, seed=0)


def refused(read, prompt, begins):
    with pytest.raises(UserError) as caught:
        read.read(prompt, SamplingParams(), "1")
    message = str(caught.value)
    assert message.startswith(begins)
    assert len(message) < 500
    assert message.isprintable()
    return message


@pytest.mark.parametrize("call", [*map(raising, RAISED), recurse])
def test_a_chat_template_raises(call):
    tokenizer = words()
    tokenizer.apply_chat_template = call
    refused(reader(tokenizer), MESSAGES, "the chat template of tiny does not take these messages (")


@pytest.mark.parametrize("call", [*map(raising, RAISED), recurse])
def test_a_tokenizer_raises(call):
    tokenizer = words()
    tokenizer.decode = call
    refused(reader(tokenizer), [3, 4], "the tokenizer cannot turn tokens into text (")
    tokenizer._encode_plus = call
    refused(reader(tokenizer), "w7 w8", "the tokenizer of tiny does not take this prompt (")


TEMPLATES = {
    "{{ 1 // 0 }}": "ZeroDivisionError: integer division",
    "{{ raise_exception('only users') }}": "TemplateError: only users",
    "{{ messages[0].content | int / 0 }}": "ZeroDivisionError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ messages[9]['content'] }}": "UndefinedError",
    "{{ messages.append(1) }}": "SecurityError",
    "{{ '%d' % 'x' }}": "TypeError",
    "{{ strftime_now('%') + 1 }}": "TypeError",
    "{{ 'x'.encode('no') }}": "LookupError",
    "{{ ''.join(1) }}": "TypeError",
    "{% for %}": "TemplateSyntaxError",
    "{{ x | nothing }}": "TemplateAssertionError",
    "{% include 'x' %}": "TypeError",
    "{{ range(10 ** 9) }}": "OverflowError",
    "{{ 'x' * 10 ** 18 }}": "MemoryError",
    "\ud800": "UnicodeEncodeError|TypeError",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_fails(template):
    tokenizer = words()
    tokenizer.chat_template = template
    message = refused(reader(tokenizer), MESSAGES, "the ")
    assert any(f"({kind}" in message for kind in TEMPLATES[template].split("|")), message


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt("now"), SystemExit(3)])
def test_these_are_passed_on(error):
    with pytest.raises(type(error)) as caught, foreign("no", "stop"):
        raise error
    assert caught.value is error


def test_a_library_may_hide_an_interrupt():
    error = RuntimeError("the callback failed")
    error.__context__ = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), foreign("no", "stop"):
        raise error


def test_our_own_errors_are_passed_on():
    with pytest.raises(UserError, match=r"^ours$"), foreign("no", "stop"):
        raise UserError("ours")


def test_deep_messages_are_no_traceback():
    read = reader(words())
    for depth in (50, 90, *range(940, 1000, 3), 5000):
        deep = "[" * depth + "]" * depth
        line = f'{{"messages": [{{"role": "user", "content": "w3", "x": {deep}}}]}}'.encode()
        (found,) = jsonl.read([line], {"max_tokens": 1})
        if isinstance(found, jsonl.BadLine):
            assert "nested too deeply" in found.error
            assert depth > 90
        else:
            read.read(found.prompt, found.params, "1")
            json.loads(jsonl.encode(jsonl.failure(found, "no")))
            assert jsonl.digest(found.prompt)
