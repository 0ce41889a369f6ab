import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emsjax.requests import jsonl

INPUT = (
    '{"id": "a", "prompt": "one"}\n'
    "not json\n"
    '{"prompt": "three", "max_tokens": 2}\n'
    '{"id": "a", "prompt": "again"}\n'
    '{"id": "é", "prompt_token_ids": [65, 66]}\n'
)


def _sorted(path):
    return sorted(path.read_bytes().splitlines())


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_cut_at_any_byte_ends_with_the_same_records(call, tmp_path, every):
    """Cuts at some bytes, and at all around the ends of lines."""
    file, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(INPUT)
    assert call("--input", file, "--output", path).status == 1
    whole = path.read_bytes()
    expected = _sorted(path)
    ends = [n for n, byte in enumerate(whole) if byte == ord("\n")]
    near = {n + step for n in ends for step in (-1, 0, 1, 2)} & set(range(len(whole) + 1))
    for cut in sorted(near | set(range(0, len(whole), every))):
        path.write_bytes(whole[:cut])
        assert call("--input", file, "--output", path, "--resume").status == 1
        assert _sorted(path) == expected, cut


def test_finished_prompts_are_not_generated_again(call, llm, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(jsonl.encode({"id": 1, "text": "kept", "prompt_digest": jsonl.digest("ab")}))
    called = call("--prompt=ab", "--prompt=cd", "--output", path, "--resume")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(record["id"], record["text"]) for record in records] == [(1, "kept"), (2, "dc")]
    assert "1 prompt, 2 tokens" in called.err
    assert "1 prompt already finished by an earlier run" in called.err


def test_a_result_is_not_reused_for_another_prompt(call, llm, tmp_path):
    path = tmp_path / "out.jsonl"
    call("--prompt=w7", "--output", path)
    before = path.read_bytes()
    for other in (["--prompt=w8"], ["--prompt=w7", "--chat"]):
        called = call(*other, "--output", path, "--resume")
        assert called.status == 2
        assert called.err == (
            f"error: {str(path)!r} holds a result for the id 1, which now has another prompt; give "
            "the prompts and ids of the run that --resume continues, or another --output.\n"
        )
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"}\n', '{"prompt": "b"}\n{"prompt": "a"}\n'),
        ('{"prompt_token_ids": [1]}\n', '{"prompt_token_ids": [2]}\n'),
        ('{"id": "x", "prompt": "a"}\n', '{"id": "x", "prompt": 3}\n'),
    ],
)
def test_a_changed_input_is_reported(call, tmp_path, then, now):
    file, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(then)
    call("--input", file, "--output", path)
    file.write_text(now)
    called = call("--input", file, "--output", path, "--resume")
    assert called.status == 2
    assert "which now has another prompt; give the prompts and ids" in called.err


def test_a_reordered_input_with_ids_is_resumed(call, tmp_path):
    file, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(
        '{"id": "x", "prompt": "a"}\n{"id": "y", "messages": [{"role": "user", "content": "b"}]}\n'
    )
    call("--input", file, "--output", path)
    file.write_text(
        '{"id": "y", "messages": [{"content": "b", "role": "user"}]}\n{"id": "x", "prompt": "a"}\n'
    )
    assert call("--input", file, "--output", path, "--resume").status == 0
    assert len(path.read_text().splitlines()) == 2


def test_a_fixed_line_is_run_again(call, tmp_path):
    file, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"id": 1, "prompt": 3}\n')
    assert call("--input", file, "--output", path).status == 1
    file.write_text('{"id": 1, "prompt": "ab"}\n')
    assert call("--input", file, "--output", path, "--resume").status == 0
    (record,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert record["text"] == "ba"


def test_resuming_a_finished_run_changes_nothing(call, tmp_path):
    path = tmp_path / "out.jsonl"
    call("--prompt=ab", "--output", path)
    before = path.read_bytes()
    assert call("--prompt=ab", "--output", path, "--resume").status == 0
    assert path.read_bytes() == before


def test_a_second_run_does_not_overwrite_the_first(call, llm, tmp_path):
    path = tmp_path / "out.jsonl"
    call("--prompt=ab", "--output", path)
    before = path.read_bytes()
    called = call("--prompt=cd", "--output", path)
    assert called.status == 2
    assert "already holds results" in called.err
    assert (path.read_bytes(), len(llm.loads)) == (before, 1)
    assert call("--prompt=cd", "--output", path, "--overwrite").status == 0
    assert json.loads(path.read_text())["text"] == "dc"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


lines = st.one_of(
    st.builds(lambda text: {"prompt": text}, st.text(max_size=8)),
    st.builds(lambda i: {"id": i, "prompt": "p"}, st.integers(0, 9) | st.text(max_size=1)),
    st.builds(lambda ids: {"prompt_token_ids": ids}, st.lists(st.integers(0, 300), max_size=3)),
    st.just({"prompt": "x", "unknown": 1}),
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    st.lists(lines | st.binary(max_size=6).map(lambda raw: raw.replace(b"\n", b"")), max_size=12)
)
def test_no_line_is_lost_and_every_id_is_matched(call, folder, raws):
    file, path = folder / "in.jsonl", folder / "out.jsonl"
    file.write_bytes(b"\n".join(raws))
    status = call("--input", file, "--output", path, "--overwrite", "--batch-size=3").status
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(records) == sum(1 for raw in raws if raw.strip())
    assert status == any("error" in record for record in records)
    given_lines = {jsonl.key(line.id): line for line in jsonl.read(raws, {}) if _good(line)}
    for record in records:
        if "error" not in record:
            prompt = given_lines.pop(jsonl.key(record["id"])).prompt
            ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
            assert record["token_ids"] == ids[::-1]


def _good(line):
    return isinstance(line, jsonl.Line)
