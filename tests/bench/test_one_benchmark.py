"""Only one process writes results to a directory, and names that look like formulas are drawn."""

import shutil
from pathlib import Path

import pytest

from emsjax.bench import plots
from emsjax.bench.__main__ import main
from emsjax.bench.records import read_records
from emsjax.errors import UserError
from emsjax.host.locks import alone_in


def test_a_second_benchmark_in_a_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    with alone_in(tmp_path / "out", "busy"):
        status = main(["--input", str(prompts), "--output", str(tmp_path / "out"), "--append"])
    assert status == 2
    assert "error: another process is writing to" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "[3]", "3", '{"a": 1}'])
def test_results_that_cannot_be_read(content: str, tmp_path: Path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match="holds no results to append to") as caught:
        read_records(tmp_path / "results.json")
    assert len(str(caught.value)) < 500


def test_dollar_signs_are_no_formula(tmp_path: Path):
    record = {
        "dataset": r"$\frac{",
        "model": "$a$^",
        "method": "ems",
        "drafter": "$x_",
        "planner": True,
        "batch_size": 1,
        "error": None,
        "simulated": False,
        "tokens_per_step": 2.0,
        "parts": None,
    }
    (file,) = plots.draw([record], tmp_path)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plots, "_draw", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"the plots cannot be drawn \(ZeroDivisionError"):
        plots.draw([], tmp_path)
