import json
import sys
from types import SimpleNamespace

import pytest

from emsjax.errors import UserError
from emsjax.requests import jsonl
from emsjax.version import __version__


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_one_prompt_prints_its_text_only(call):
    called = call("--prompt", "abc")
    assert (called.status, called.out) == (0, "cba\n")
    assert "1 prompt, 3 tokens" in called.err
    assert "tokens per target step" in called.err


def test_several_prompts_come_in_order_under_a_header_each(call):
    called = call(*(f"--prompt=p{i}\n!" for i in range(5)), "--batch-size", 4)
    sections = [f"=== prompt {i + 1} of 5: p{i} ! ===\n!\n{i}p\n" for i in range(5)]
    assert called.out == "\n".join(sections)


def test_a_long_prompt_is_shortened_in_its_header(call):
    called = call("--prompt", "x" * 61, "--prompt", "y")
    assert f"=== prompt 1 of 2: {'x' * 59}… ===\n" in called.out


def test_max_tokens_is_128_unless_given(call):
    assert call("--prompt", "a" * 200, "--max-model-len", 256).out == "a" * 128 + "\n"
    assert call("--prompt", "abc", "--max-tokens", 2).out == "cb\n"


def test_chat_turns_text_into_a_user_message(call, tmp_path):
    assert call("--prompt", "abc", "--chat").out == "cba>resu<\n"
    file = _write(tmp_path / "in", {"prompt": "abc"}, {"prompt_token_ids": [65]})
    called = call("--input", file, "--chat", "--output", "-")
    assert sorted(record["text"] for record in called.records) == ["A", "cba>resu<"]


def test_a_system_message_comes_before_text(call, tmp_path):
    file = _write(
        tmp_path / "in", {"prompt": "pie"}, {"messages": [{"role": "user", "content": "x"}]}
    )
    called = call("--chat", "--system", "be", "--input", file)
    assert {r["text"] for r in called.records} == {"<system>be<user>pie"[::-1], "<user>x"[::-1]}


@pytest.mark.parametrize("source", ["--prompt", "--input"])
def test_plain_text_for_an_instruct_model_gets_one_hint(call, llm, monkeypatch, source, tmp_path):
    monkeypatch.setattr(llm, "tokenizer", SimpleNamespace(chat_template="{{ messages }}"))
    texts = ["--prompt", "a", "--prompt", "b"]
    given = ["--input", _write(tmp_path / "in", {"prompt": "a"}, {"prompt": "b"})]
    arguments = texts if source == "--prompt" else given
    assert call(*arguments).err.count("fake has a chat template") == 1
    assert "chat template" not in call(*arguments, "--chat").err
    monkeypatch.setattr(llm, "tokenizer", None)
    assert "chat template" not in call(*arguments).err


def test_errors_of_the_engine_name_options(call, llm, monkeypatch):
    """The Python interface names parameters, which the command line does not have."""

    def fail(*_, **__):
        raise UserError("out of memory; lower max_batch_size or max_model_len, not 'max_tokens'")

    monkeypatch.setattr(llm, "run", fail)
    err = call("--prompt", "a").err
    assert "lower --batch-size or --max-model-len, not 'max_tokens'" in err


def test_a_model_that_is_loaded_is_named_first(call):
    assert call("--prompt", "a", "--model", "m").err.startswith("loading m\n")


def test_options_reach_the_engine_and_only_those_given(call, llm):
    call("--prompt", "a", "--model", "m", "--drafter", "none", "--exact", "--dtype", "bfloat16")
    assert llm.loads[-1] == {
        "model": "m",
        "max_batch_size": 8,
        "max_model_len": 64,
        "drafter": "none",
        "dtype": "bfloat16",
        "exact": True,
    }
    call("--prompt", "a", "--tensor-parallel", "4")
    assert llm.loads[-1]["tensor_parallel_size"] == 4
    call("--prompt", "a", "--tensor-parallel", "auto")
    assert llm.loads[-1]["tensor_parallel_size"] == "auto"
    call("--prompt", "a", "--draft-length", 4, "--max-ngram", 2, "--min-ngram", 2, "--seed", 3)
    given = {"draft_length": 4, "max_ngram": 2, "min_ngram": 2, "seed": 3}
    assert given.items() <= llm.loads[-1].items()
    call("--prompt", "a", "--method", "none")
    assert llm.loads[-1]["drafter"] == "none"


def test_several_outputs_of_a_prompt_have_a_header_each(call):
    called = call("--prompt=ab", "--prompt=c", "--n=2", "--temperature=1")
    sections = [
        f"=== prompt {number} of 2, output {index} of 2: {prompt} ===\n{text}\n"
        for number, prompt, text in ((1, "ab", "ba"), (2, "c", "c"))
        for index in (1, 2)
    ]
    assert called.out == "\n".join(sections)
    (record,) = call("--prompt=ab", "--n=2", "--temperature=1", "--output=-").records
    assert [each["text"] for each in record["outputs"]] == ["ba", "ba"]
    assert record["text"] == "ba"


def test_streaming_prints_the_same_texts(call):
    prompts = [f"--prompt={'p' * n}{n}" for n in (3, 1, 5)]
    for more in ((), ("--n=2", "--temperature=1")):
        assert call(*prompts, "--stream", *more).out == call(*prompts, *more).out
    assert call("--prompt=abc", "--stream").out == "cba\n"


def test_a_stream_prints_each_piece_as_it_is_generated(call, llm, capfd):
    seen = []
    llm.before_piece = staticmethod(lambda _place: seen.append(capfd.readouterr().out))
    rest = call("--prompt=abc", "--prompt=de", "--stream").out
    assert seen[1:] == ["=== prompt 1 of 2: abc ===\nc", "b", "a"]
    assert rest == "\n\n=== prompt 2 of 2: de ===\ned\n"


def test_an_interrupted_stream_ends_its_line(call, llm):
    def interrupt(place):
        if place == 3:
            raise KeyboardInterrupt

    llm.before_piece = staticmethod(interrupt)
    called = call("--prompt=abcd", "--prompt=ef", "--stream")
    assert called.status == 130
    assert called.out == "=== prompt 1 of 2: abcd ===\ndcb\n\n=== prompt 2 of 2: ef ===\nfe\n"


def test_logprobs_are_refused_for_text_from_a_pipe(call):
    called = call("--logprobs=2", stdin=b"Hello")
    assert (called.status, called.out) == (2, "")
    assert "--logprobs cannot be shown in plain text" in called.err


def test_streaming_is_refused_for_json_lines_from_a_pipe(call):
    called = call("--stream", stdin=b'{"prompt": "a"}\n')
    assert (called.status, called.out) == (2, "")
    assert "--stream prints texts, but JSON lines hold whole results" in called.err


def test_prompts_with_an_output_are_records(call, tmp_path):
    path = tmp_path / "out.jsonl"
    called = call("--prompt", "ab", "--prompt", "cd", "--output", path)
    assert (called.status, called.out) == (0, "")
    assert {record["id"]: record["text"] for record in _lines(path)} == {1: "ba", 2: "dc"}


def test_a_record_has_the_documented_fields(call):
    (record,) = call("--prompt", "é", "--output", "-").records
    metrics = record.pop("metrics")
    assert record == {
        "id": 1,
        "prompt": "é",
        "text": "\ufffd\ufffd",
        "token_ids": [0xA9, 0xC3],
        "finish_reason": "stop",
        "prompt_digest": jsonl.digest("é"),
    }
    assert metrics["drafted_by_position"] == [2, 1]
    assert metrics.keys() >= {"target_steps", "emitted_tokens", "time_to_first_token"}


def test_bad_lines_get_error_records(call, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(
        '{"prompt": "ab"}\nnot json\n\n{"id": "x", "prompt_token_ids": [65, 999]}\n'
        '{"id": "y", "prompt": ""}\n{"id": "z", "messages": [{"role": "user", "content": "q"}]}\n'
    )
    called = call("--input", file)
    assert called.status == 1
    by_id = {record["id"]: record for record in called.records}
    assert by_id.keys() == {1, None, "x", "y", "z"}
    assert by_id[1]["text"] == "ba"
    assert by_id["z"]["text"] == "q>resu<"
    assert by_id[None]["error"].startswith("line 2: not JSON")
    assert [by_id[name]["line"] for name in (None, "x", "y")] == [2, 4, 5]
    assert by_id["x"]["error"].startswith("line 4: token id 999")
    assert by_id["y"]["error"].startswith("line 5: the prompt is empty")
    assert "3 bad lines" in called.err


def test_no_two_records_have_the_same_id(call, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(
        'not json\n{"id": 1, "prompt": "ab"}\n{"id": 1, "prompt": "cd"}\n'
        '{"id": 6, "prompt": "ef"}\n[]\n{"prompt": "gh"}\n'
    )
    records = call("--input", file).records
    assert {r["id"]: r["text"] for r in records if "text" in r} == {1: "ba", 6: "fe"}
    errors = [(r["id"], r["line"]) for r in records if "error" in r]
    assert errors == [(None, 1), (None, 3), (None, 5), (None, 6)]


def test_a_line_can_override_the_parameters(call, tmp_path):
    file = _write(tmp_path / "in", {"prompt": "abc", "max_tokens": 1}, {"prompt": "abc"})
    called = call("--input", file, "--max-tokens", 2)
    assert {record["id"]: record["text"] for record in called.records} == {1: "c", 2: "cb"}


def test_a_schema_holds_for_all_lines_that_have_no_other(call, llm, monkeypatch, tmp_path):
    asked, request = {}, llm.request

    def noted(self, prompt, params, request_id):
        asked[prompt] = params.structured_outputs
        return request(self, prompt, params, request_id)

    monkeypatch.setattr(llm, "request", noted)
    (tmp_path / "schema").write_text('{"type": "null"}')
    lines = ({"prompt": "abc"}, {"prompt": "ef", "structured_outputs": {"regex": "a"}})
    file = _write(tmp_path / "in", *lines)
    call("--input", file, "--json-schema", tmp_path / "schema")
    assert asked["abc"].json == '{"type": "null"}'
    assert (asked["ef"].json, asked["ef"].regex) == (None, "a")


def test_options_may_contradict_each_other_until_a_line_overrides_one(call, tmp_path):
    """A line can set the temperature that `--n` needs and the limit that `--min-tokens` needs."""
    lines = ({"prompt": "ab", "temperature": 1, "max_tokens": 300}, {"prompt": "cd"})
    called = call("--input", _write(tmp_path / "in", *lines), "--n=2", "--min-tokens=200")
    good, bad = called.records if "text" in called.records[0] else called.records[::-1]
    assert len(good["outputs"]) == 2
    assert "error" in bad
    called = call("--input", _write(tmp_path / "in", *lines), "--n=0")
    assert (called.status, called.out) == (2, "")


def test_requests_are_taken_as_slots_become_free(call, llm, tmp_path):
    file = _write(tmp_path / "in", *({"prompt": f"{i}"} for i in range(50)))
    called = call("--input", file, "--batch-size", 3)
    assert len(called.records) == 50
    assert llm.pulled == 3


def test_json_lines_on_standard_input(call):
    called = call(stdin=b'\n{"prompt": "ab", "id": 7}\n{"prompt": "cd"}\n')
    assert {record["id"]: record["text"] for record in called.records} == {7: "ba", 3: "dc"}
    called = call("--input", "-", stdin=b"not json\n")
    assert (called.status, called.records[0]["line"]) == (1, 1)


def test_text_on_standard_input_is_one_prompt(call, tmp_path):
    assert call(stdin=b"one\ntwo\n").out == "owt\neno\n"
    assert call(stdin=b"\n{ code }\n").out == "} edoc {\n\n"
    path = tmp_path / "out.jsonl"
    call("--output", path, stdin=b"ab")
    assert _lines(path)[0]["text"] == "ba"


def test_help_and_version(call):
    called = call("--help")
    assert (called.status, called.err) == (0, "")
    assert "--draft-length" in called.out
    assert call("--version").out == f"emsjax {__version__}\n"


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt given; use --prompt"),
        (["--frobnicate"], "No such option: --frobnicate"),
        (["stray"], "stray"),
        (["--prompt"], "--prompt"),
        (["--prompt=a", "--max-tokens=many"], "'--max-tokens': 'many' is not a whole number"),
        (["--prompt=a", "--top-p=x"], "'x' is not a number"),
        (["--prompt=a", "--max-tokens=0"], "--max-tokens 0 is out of range"),
        (["--prompt=a", "--tensor-parallel=two"], "'two' is neither a whole number nor auto"),
        (["--prompt=a", "--batch-size=0"], "--batch-size 0 is too small"),
        (["--prompt=a", "--max-model-len=-4"], "--max-model-len -4 is too small"),
        (["--prompt=a", "--draft-length=0"], "--draft-length 0 is too small"),
        (["--prompt=a", "--seed=-1"], "--seed -1 is too small"),
        (["--prompt=a", f"--seed={2**63}"], "--seed 9223372036854775808 is too large"),
        (["--prompt=a", "--batch-size=65537"], "--batch-size 65537 is too large"),
        (["--prompt=a", "--temperature=-1"], "--temperature -1.0 is out of range"),
        (["--prompt=a", "--temperature=nan"], "--temperature nan is out of range"),
        (["--prompt=a", "--n=2"], "--n 2 outputs would all be the same"),
        (["--prompt=a", "--stop="], "a stop string is empty"),
        (["--prompt=a", "--logprobs=3"], "--logprobs cannot be shown in plain text"),
        (["--prompt=a", "--prompt-logprobs=3"], "--prompt-logprobs cannot be shown in plain text"),
        (["--prompt=a", "--json-schema=no/such"], "--json-schema no/such cannot be read (No such"),
        (["--prompt=a", "--json-schema=/dev/null"], "the JSON schema is not JSON"),
        (["--prompt=a", "--stream", "--output=-"], "--stream prints texts, but JSON"),
        (["--input=x.jsonl", "--stream"], "--stream prints texts, but JSON"),
        (["--prompt=a", "--top-k=-4"], "--top-k -4 is out of range"),
        (["--prompt=a", "--top-p=0"], "--top-p 0.0 is out of range; give a number above 0 to 1"),
        (
            ["--prompt=a", "--method=padded"],
            "--method padded is unknown; choose from ems, none",
        ),
        (["--prompt=a", "--drafter=eagle"], "--drafter eagle is unknown; choose from"),
        (["--prompt=a", "--dtype=int3"], "--dtype int3 is unknown; choose from auto"),
        (["--prompt=a", "--drafter=prompt-lookup", "--draft-model=m"], "does not use --draft-m"),
        (["--prompt=a", "--drafter=none", "--draft-model=m"], "no effect without drafting"),
        (["--prompt=a", "--drafter=draft-model", "--max-ngram=2"], "is for prompt lookup, which"),
        (["--prompt=a", "--input=f"], "--prompt and --input contradict each other"),
        (["--prompt=a", "--method=none", "--drafter=prompt-lookup"], "contradicts it"),
        (["--prompt=a", "--drafter=none", "--draft-length=3"], "--draft-length has no effect"),
        (["--prompt=a", "--method=none", "--max-ngram=3"], "--max-ngram has no effect without"),
        (["--prompt=a", "--min-ngram=4", "--max-ngram=2"], "--min-ngram 4 is more than"),
        (["--prompt=a", "--resume"], "--resume needs a file to continue; give --output FILE"),
        (["--prompt=a", "--resume", "--output=-"], "--resume needs a file"),
        (["--prompt=a", "--resume", "--overwrite", "--output=f"], "--resume and --overwrite"),
        (["--input=no/such.jsonl"], "cannot read 'no/such.jsonl' (No such file or directory)"),
        (["--input=."], "cannot read '.' (Is a directory)"),
        (["--prompt=a", "--output=no/such/out.jsonl"], "cannot write to 'no/such/out.jsonl'"),
        (["--prompt=a", "--output=."], "'.' is a directory; give --output a file"),
        (["--prompt=a\udcff"], "prompt 1 has a character that UTF-8 cannot encode"),
        (["--prompt=a", "--system=b"], "--system is a message of a conversation; give --chat"),
        (["--prompt=a", "--chat", "--system=\udcff"], "--system has a character that UTF-8"),
        (["--prompt=a", "--report=-"], "--report - is not supported; name a file"),
        (["--prompt=a", "--report=."], "cannot write the report to '.' (it is not a regular file)"),
        (["--prompt=a", "--report=/dev/null"], "'/dev/null' (it is not a regular file)"),
        (["--prompt=a", "--report=no/such.html"], "(the directory 'no' does not exist)"),
        (["--prompt=a", "--output=f", "--report=./f"], "--output and --report are the same file"),
        (
            ["--prompt=a", "--report=r.jsonl"],
            "--report writes an HTML page, but 'r.jsonl' does not",
        ),
        (["--prompt=a", "--report=" + "r" * 300 + ".html"], "(File name too long)"),
        (["--prompt=a", "--overwrite"], "--overwrite needs a file to replace; give --output FILE"),
        (["--prompt=a", "--overwrite", "--output=-"], "--overwrite needs a file to replace"),
        (["--input=x.jsonl", "--stop="], "a stop string is empty"),
        (["--input=x.jsonl", "--stop=\udcff"], "has half a surrogate pair"),
        (["--prompt=a", "--adapt-temperature=.8"], "--adapt-temperature 0.8 needs a temperature"),
        (["--prompt=a", "--temperature=1e-9"], "--temperature 1e-09 is too small to differ from 0"),
        (["--input=x.jsonl", "--temperature=1e-9"], "--temperature 1e-09 is too small to differ"),
        (["--prompt=a", "--min-tokens=200"], "--min-tokens 200 is more than --max-tokens 128"),
        (["--input=x.jsonl", "--min-tokens=-1"], "--min-tokens -1 is out of range"),
        (["--prompt=a", "--n=2", "--temperature=1", "--top-k=1"], "the same with --top-k 1"),
        *(
            (["--prompt=a", f"--{name}="], f"--{name} is empty; give it a value or leave it out")
            for name in ("model", "tokenizer", "draft-model", "output", "report", "json-schema")
        ),
        (["--input="], "--input is empty; give it a value or leave it out"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_loaded(
    call, llm, empty_folder, arguments, message
):
    called = call(*arguments)
    assert (called.status, called.out) == (2, "")
    assert called.err.startswith("error: ")
    assert message in called.err
    assert called.err.count("\n") == 1
    assert llm.loads == []
    assert list(empty_folder.iterdir()) == []


def test_an_empty_pipe_and_one_that_is_not_text_are_reported(call, monkeypatch):
    assert "standard input is empty" in call(stdin=b"").err
    assert "standard input is empty" in call(stdin=b" \n\n").err
    assert "not UTF-8 text" in call(stdin=b"\xff\n").err


def test_a_closed_standard_input_is_reported(call, llm, monkeypatch, capfd):
    from emsjax.generate.__main__ import main

    monkeypatch.setattr(sys, "stdin", None)
    assert main([]) == 2
    assert "no prompt given" in capfd.readouterr().err


def test_input_and_output_must_differ(call, llm, tmp_path):
    file = _write(tmp_path / "in.jsonl", {"prompt": "a"})
    called = call("--input", file, "--output", file, "--overwrite")
    assert called.status == 2
    assert "are the same file" in called.err
    assert _lines(file) == [{"prompt": "a"}]


def test_a_model_that_cannot_be_loaded_is_reported_and_costs_no_results(call, tmp_path):
    path = _write(tmp_path / "out.jsonl", {"id": 1, "token_ids": []})
    before = path.read_bytes()
    called = call("--prompt=a", "--model=missing", "--output", path, "--overwrite")
    assert called.status == 2
    first, _, rest = called.err.partition("\n")
    assert first == "loading missing"
    assert rest == "error: the model 'missing' is not there; give --model a directory.\n"
    assert path.read_bytes() == before


def test_a_failed_start_leaves_no_file_behind(call, tmp_path):
    path = tmp_path / "out.jsonl"
    assert call("--prompt=a", "--model=missing", "--output", path).status == 2
    assert not path.exists()


def test_a_bad_prompt_among_texts_is_reported_before_any_runs(call):
    called = call("--prompt=good", "--prompt=")
    assert (called.status, called.out) == (2, "")
    assert called.err == "error: prompt 2: the prompt is empty; give it at least one token.\n"


def test_a_failure_inside_a_run_keeps_the_results_before_it(call, llm, tmp_path):
    from emsjax.errors import UserError

    def fail(number):
        if number == 2:
            raise UserError("the cache does not fit; give --batch-size 1.")

    llm.before_result = staticmethod(fail)
    path = tmp_path / "out.jsonl"
    called = call("--prompt=a", "--prompt=b", "--prompt=c", "--output", path)
    assert (called.status, len(_lines(path))) == (2, 2)
    assert called.err.endswith("error: the cache does not fit; give --batch-size 1.\n")
