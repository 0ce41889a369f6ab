"""`--report` writes the token view of a run."""

import json
import shutil


def test_a_page_of_a_run(call, llm, tmp_path):
    path = tmp_path / "page.html"
    called = call("--prompt=ab", "--prompt=cde", "--report", path)
    assert called.status == 0
    assert called.out == "=== prompt 1 of 2: ab ===\nba\n\n=== prompt 2 of 2: cde ===\nedc\n"
    assert called.err.endswith(f"\nwrote the report to {path}\n")
    assert llm.loads[-1]["trace"] is True
    page = path.read_text()
    assert "<h1>fake</h1>" in page
    assert "2 requests, 5 tokens in 5 target steps." in page
    assert "<h3>Request 1</h3>" in page


def test_without_the_option_nothing_is_traced(call, llm):
    assert call("--prompt=ab").status == 0
    assert "trace" not in llm.loads[-1]


def test_streamed_texts_and_json_lines_get_a_page_too(call, tmp_path):
    path = tmp_path / "page.html"
    call("--prompt=ab", "--prompt=c", "--stream", "--report", path)
    assert "2 requests, 3 tokens" in path.read_text()
    lines = [json.dumps({"prompt": "p", "id": f"<{number}>"}) for number in range(300)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    called = call("--input", tmp_path / "in.jsonl", "--report", path)
    assert len(called.records) == 300
    assert not any("trace" in record for record in called.records)
    page = path.read_text()
    assert "300 requests, 300 tokens" in page
    assert "The first 200 requests are shown" in page
    assert page.count("<article") == 200
    assert "<h3>Request &lt;" in page


def test_a_failed_start_writes_no_page(call, tmp_path):
    path = tmp_path / "page.html"
    assert call("--prompt=a", "--model=missing", "--report", path).status == 2
    assert not path.exists()


def test_resuming_with_nothing_left_keeps_the_page(call, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "ab", "id": 1}))
    files = "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"
    path = tmp_path / "page.html"
    for _ in range(2):
        called = call(*files, "--resume", "--report", path)
        assert called.status == 0
        assert "1 request, 2 tokens in 2 target steps." in path.read_text()
    assert called.err.endswith(f"no request was run; {path} is unchanged\n")


def test_a_page_that_cannot_be_written_costs_no_results(call, llm, tmp_path):
    folder, results = tmp_path / "pages", tmp_path / "out.jsonl"
    folder.mkdir()
    llm.before_result = staticmethod(lambda number: number or shutil.rmtree(folder))
    called = call("--prompt=a", "--report", folder / "page.html", "--output", results)
    assert called.status == 2
    assert called.err.splitlines()[-1].startswith("error: cannot write the report to")
    assert len(results.read_text().splitlines()) == 1
