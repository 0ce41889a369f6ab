"""What `bench` does without being asked: its drafter, its plots and what it says first."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from emsjax.bench import __main__ as command
from emsjax.bench import plots, run
from emsjax.bench.settings import Settings
from emsjax.errors import UserError


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Returns a function from arguments to the settings that `run` gets."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n')

    def parsed(*arguments: str) -> Settings:
        found: list[Settings] = []
        monkeypatch.setattr(run, "run", found.append)
        given = ["--input", str(file), "--output", str(tmp_path / "out"), *arguments]
        assert command.main(given) == 0
        return found[0]

    return parsed


@pytest.mark.parametrize(
    ("arguments", "shipped", "drafters"),
    [
        ([], True, {"none", "combined"}),
        ([], False, {"none", "prompt-lookup"}),
        (["--draft-model", "m"], False, {"none", "combined"}),
        (["--draft-quantize", "int8"], False, {"none", "combined"}),
        (["--drafters", "prompt-lookup"], True, {"none", "prompt-lookup"}),
    ],
)
def test_the_default_drafter_is_that_of_generate(
    settings: Any, arguments: list[str], shipped: bool, drafters: set[str]
):
    chosen = settings(*arguments).for_model(shipped)
    assert {spec.drafter for spec in chosen.specs()} == drafters


def test_missing_plots_are_told_before_anything_is_loaded(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("loaded")

    begin = run.run
    chosen = settings()
    monkeypatch.setattr(run, "real_target", fail)
    monkeypatch.setattr(run, "_can_plot", lambda: False)
    with pytest.raises(UserError, match="loaded"):
        begin(chosen)
    assert capsys.readouterr().err.startswith("there will be no plots: they need pip install")


@pytest.mark.parametrize(("sizes", "last"), [((1, 4), 4), ((2, 8), 8), ((1, 32), 32)])
def test_plots_end_at_the_measured_batch_sizes(sizes: tuple[int, int], last: int):
    records = [
        {
            "method": "ems",
            "drafter": "prompt-lookup",
            "batch_size": size,
            "decode_speedup": 1.5,
            "decode_speedup_spread": [1.4, 1.6],
        }
        for size in sizes
    ]
    axes = Figure().subplots()
    assert plots._speedup(axes, records)
    drawn = [x for line in axes.lines[:-1] for x in line.get_xdata()]  # the last marks 1.0
    assert (min(drawn), max(drawn)) == (sizes[0], last)
