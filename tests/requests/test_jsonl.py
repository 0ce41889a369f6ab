import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax.engine.metrics import RequestMetrics
from emsjax.requests import jsonl
from emsjax.requests.outputs import CompletionOutput, Logprob, RequestOutput
from emsjax.requests.prompt_line import parse

DEFAULTS = {"max_tokens": 7}


def _read(*lines):
    return list(jsonl.read([line.encode() + b"\n" for line in lines], DEFAULTS))


def test_the_kinds_of_prompt():
    messages = [{"role": "user", "content": "hi"}]
    lines = _read(
        '{"prompt": "hi"}',
        '{"id": "x", "prompt_token_ids": [1, 2], "max_tokens": 3}',
        json.dumps({"messages": messages, "id": None, "seed": None}),
        '{"turns": ["hi", "and then?"]}',
    )
    assert [line.id for line in lines] == [1, "x", 3, 4]
    assert [line.prompt for line in lines] == ["hi", [1, 2], messages, messages]
    assert [line.params.max_tokens for line in lines] == [7, 3, 7, 7]


def test_messages_may_have_the_extra_fields_of_chat_logs():
    call = {"id": "c", "function": {"name": "f"}}
    log = [
        {"role": "user", "name": "Ann", "content": "hi", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    (line,) = _read(json.dumps({"messages": log}))
    assert line.prompt == [
        {"role": "user", "name": "Ann", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]


def test_blank_lines_are_skipped_and_counted():
    assert [line.id for line in _read("", '{"prompt": "a"}', "  \t", '{"prompt": "b"}')] == [2, 4]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm():
    (line,) = jsonl.read([b'\xef\xbb\xbf{"prompt": "a"}\r\n'], DEFAULTS)
    assert line.prompt == "a"


def test_lines_are_read_lazily():
    def stream():
        yield b'{"prompt": "a"}\n'
        pytest.fail("read ahead")

    assert next(iter(jsonl.read(stream(), DEFAULTS))).prompt == "a"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 1: not JSON .*column 15"),
        ("hello", "not JSON"),
        ("[1]", "not a JSON object but a list"),
        ("3", "not a JSON object but a number"),
        ("null", "not a JSON object but null"),
        ('"a"', "not a JSON object but text"),
        ("true", "not a JSON object but true or false"),
        ('{"prompt": "a", "x": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": "a", "max_tokens": ' + "9" * 5000 + "}", "not JSON"),
        ("{}", "has no prompt; give exactly one of prompt, prompt_token_ids, messages, turns"),
        ('{"prompt": null}', "has no prompt"),
        ('{"prompt": "a", "messages": []}', "has prompt and messages; give exactly one"),
        ('{"prompt": 3}', "prompt must be text, not a number"),
        ('{"prompt": "\\ud800"}', "prompt has a character that UTF-8 cannot encode"),
        ('{"prompt_token_ids": "abc"}', "prompt_token_ids must be a list of whole numbers"),
        ('{"prompt_token_ids": [1, true]}', "list of whole numbers"),
        ('{"prompt_token_ids": [1.5]}', "list of whole numbers"),
        ('{"turns": "hi"}', "turns must be a non-empty list of texts"),
        ('{"turns": []}', "turns must be a non-empty list of texts"),
        ('{"turns": [3]}', "the first of turns must be text, not a number"),
        ('{"prompt": {"text": "a"}}', "prompt must be text, not an object"),
        ('{"messages": "hi"}', "messages must be a non-empty list"),
        ('{"messages": []}', "messages must be a non-empty list of objects"),
        ('{"messages": ["hi"]}', "must be an object with role and content"),
        ('{"messages": [{"role": "user"}]}', "must be an object with role and content"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content of a message must be text"),
        ('{"messages": [{"role": null, "content": "a"}]}', "role of a message must be text"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            "a part of a message's content is 'image_url', and models take text only",
        ),
        (
            '{"messages": [{"role": "a", "content": "b", "name": "\\ud800"}]}',
            "messages has a character that UTF-8 cannot encode",
        ),
        ('{"prompt": "a", "id": 1.5}', "the id is 1.5; it must be text or a whole number"),
        ('{"prompt": "a", "id": true}', "the id is True; it must be"),
        ('{"prompt": "a", "id": ["x"]}', "must be text or a whole number"),
        ('{"prompt": "a", "max_token": 3}', "'max_token' is not a sampling parameter"),
        ('{"prompt": "a", "max_tokens": "3"}', "max_tokens='3' must be a whole number"),
        ('{"prompt": "a", "temperature": -0.7}', "temperature=-0.7 is out of range"),
        ('{"prompt": "a", "stop": ["b", ""]}', "a stop string is empty"),
        ('{"prompt": "a", "n": 3}', "n=3 outputs would all be the same at temperature 0"),
        ('{"prompt": "a", "logprobs": 21}', "logprobs=21 is out of range; .* from 0 to 20"),
        ('{"prompt": "a", "logit_bias": {"' + "9" * 5000 + '": 1}}', "must be a whole number"),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias='x' must be a whole number"),
    ],
)
def test_a_bad_line_is_reported_and_the_next_one_is_read(line, message):
    bad, good = _read(line, '{"prompt": "b"}')
    assert isinstance(bad, jsonl.BadLine)
    assert re.search(message, bad.error), bad.error
    assert bad.error.startswith("line 1: ")
    assert (good.id, good.prompt) == (2, "b")


def test_the_number_of_the_line_does_not_make_an_error_too_long():
    fields = {"prompt": "a", "stop" * 99: 1}
    (bad,) = _read(json.dumps(fields))
    assert bad.error.startswith("line 1: 'stop")
    assert len(bad.error) < 500


def test_a_line_that_is_not_utf8():
    (bad,) = jsonl.read([b'{"prompt": "\xff"}\n'], DEFAULTS)
    assert bad == jsonl.BadLine(None, 1, "line 1: not UTF-8 text; save the file as UTF-8.")


def test_an_id_names_one_line_only():
    first, second, number, text = _read(
        '{"id": "a", "prompt": "x"}',
        '{"id": "a", "prompt": "y"}',
        '{"id": 1, "prompt": "z"}',
        '{"id": "1", "prompt": "z"}',
    )
    assert first.prompt == "x"
    assert second == jsonl.BadLine(
        None,
        2,
        "line 2: the id 'a' is already taken (a line without an id gets its line number); give "
        "each line a unique id.",
    )
    assert (number.id, text.id) == (1, "1")


def test_a_line_number_does_not_repeat_an_id_of_an_earlier_line():
    _, second = _read('{"id": 2, "prompt": "x"}', '{"prompt": "y"}')
    assert "the id 2 is already taken" in second.error


def test_a_bad_line_keeps_its_own_id():
    (bad,) = _read('{"id": "mine", "prompt": 3}')
    assert (bad.id, bad.number) == ("mine", 1)


def test_an_unreadable_line_takes_no_id_from_another():
    bad, good = _read("not json", '{"id": 1, "prompt": "a"}')
    assert (bad.id, bad.number) == (None, 1)
    assert isinstance(good, jsonl.Line)


def test_digests_differ_exactly_if_prompts_do():
    prompts = ["", "a", "A", "[1]", [1], [11], [1, 1], [{"role": "a", "content": "b"}]]
    assert len({jsonl.digest(prompt) for prompt in prompts}) == len(prompts)
    swapped = [{"content": "b", "role": "a"}]
    assert jsonl.digest(swapped) == jsonl.digest(prompts[-1])


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = (
    plain | st.lists(plain, max_size=2) | st.dictionaries(st.text(max_size=2), plain, max_size=2)
)
names = st.sampled_from(
    ["id", "prompt", "prompt_token_ids", "messages", "turns", "max_tokens", "?"]
)
objects = st.dictionaries(names, values, max_size=3).map(lambda value: json.dumps(value).encode())
raw_lines = st.lists(
    objects | st.binary(max_size=9).map(lambda raw: raw.replace(b"\n", b"")), max_size=6
)


@given(raw_lines)
def test_every_line_that_is_not_blank_comes_out_once_in_order(raws):
    read = list(jsonl.read([raw + b"\n" for raw in raws], DEFAULTS))
    assert len(read) == sum(1 for raw in raws if raw.strip())
    ids = [jsonl.key(line.id) for line in read if line.id is not None]
    assert len(ids) == len(set(ids))
    for line in read:
        if isinstance(line, jsonl.BadLine):
            assert parse(jsonl.encode(jsonl.failure(line, "")))["id"] == line.id


@pytest.mark.parametrize("logprob", [-0.5, -1e9, float("-inf"), float("nan")])
def test_logprobs_are_json_numbers(logprob):
    output = CompletionOutput(0, "a", (3,), "stop", logprobs=[{3: Logprob(logprob, 1, "a")}])
    metrics = RequestMetrics(1, 0, 0, 1, (), (), 0.5)
    record = jsonl.result(RequestOutput("1", None, (3,), [output], metrics), "")
    written = parse(jsonl.encode(record))["logprobs"][0]
    assert written["logprob"] == written["top_logprobs"][0]["logprob"]
    assert written["logprob"] == (logprob if logprob == -0.5 else -9999.0)


@given(st.text() | st.integers())
def test_an_id_survives_being_a_request_id(line_id):
    assert json.loads(jsonl.key(line_id)) == line_id


@given(st.dictionaries(st.text(), values, max_size=3))
def test_a_record_is_one_line_that_reads_back(record):
    raw = jsonl.encode({"id": 1, "text": record})
    assert raw.count(b"\n") == 1
    assert raw.endswith(b"\n")
    assert raw.startswith(b'{"id": ')
    parse(raw)  # refuses NaN and infinity
