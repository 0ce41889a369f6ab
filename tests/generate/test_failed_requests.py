"""A request that the model fails on ends with an error; the others and their results do not."""

import json

ERROR = "the model gave logits that are not numbers"


def test_a_failed_line_gets_an_error_record_and_runs_again_on_resume(call, llm, tmp_path):
    source, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"id": f"r{n}", "prompt": "a?b" if n % 3 == 1 else "ab"} for n in range(7)]
    source.write_text("\n".join(map(json.dumps, lines)))
    files = "--input", source, "--output", results
    called = call(*files)
    assert called.status == 1
    assert "5 prompts, " in called.err
    assert "2 bad lines: see the error records in the output" in called.err
    found = {record["id"]: record for record in map(json.loads, results.read_text().splitlines())}
    assert found.keys() == {line["id"] for line in lines}
    failed = {name: record for name, record in found.items() if "error" in record}
    assert failed == {
        f"r{n}": {"id": f"r{n}", "line": n + 1, "error": f"line {n + 1}: {ERROR}"} for n in (1, 4)
    }
    again = call(*files, "--resume")
    assert again.status == 1
    assert "5 prompts already finished" in again.err
    assert len(results.read_text().splitlines()) == 7


def test_texts_show_what_came_before_the_error(call, tmp_path):
    for option in ((), ("--stream",)):
        page = tmp_path / "page.html"
        called = call("--prompt=ab", "--prompt=c?de", *option, "--report", page)
        assert called.status == 1
        assert called.out == ("=== prompt 1 of 2: ab ===\nba\n\n=== prompt 2 of 2: c?de ===\ned\n")
        assert f"error: prompt 2: {ERROR}\n" in called.err
        assert "1 prompt failed: see the errors above" in called.err
        assert "bad line" not in called.err
        assert f"ended by an error: {ERROR}" in page.read_text()


def test_a_request_fails_if_one_of_its_outputs_does(call):
    line = json.dumps({"prompt": "a?", "n": 2, "temperature": 1})
    called = call("--input=-", stdin=line.encode())
    assert called.status == 1
    assert called.records == [{"id": 1, "line": 1, "error": f"line 1: {ERROR}"}]
