"""The attention benchmark runs; its figures mean nothing on a CPU."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import attention


def test_it_measures_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "attention.json"
    small = "--model smollm2-135m --dtype float32 --batch-sizes 1,2 --contexts 64 --rows 2"
    arguments = [*small.split(), "--cache-mb", "1", "--repeats", "1", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["attention", *arguments])
    attention.main()
    results = json.loads(file.read_text())["results"]
    assert [result["batch"] for result in results] == [1, 2]
    # Keys and values of 3 heads of width 64 take 1536 bytes at 4 bytes per number.
    assert [result["kv_bytes"] for result in results] == [64 * 1536, 2 * 64 * 1536]
    for result in results:
        assert result["kernels"]["reference"]["against_reference"] == 1
        assert result["kernels"]["reference"]["bytes_per_s"] > 0
    assert "against XLA" in capsys.readouterr().out
