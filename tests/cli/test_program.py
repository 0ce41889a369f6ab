"""One program with six commands, which imports a command only when it is called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emsjax import __main__ as program
from emsjax import __version__
from emsjax.cli import command

SLOW_IMPORTS = ("jax", "flax", "transformers", "numpy")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    assert program.main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in program.COMMANDS:
        assert f"\n  {name} " in out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out == f"emsjax {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command is given; choose from generate, serve, bench, plan, train, convert"),
        (["generat"], "'generat' is no command; choose from generate"),
        ([""], "no command is given"),
        (["--prompt", "x"], "--prompt needs a command before it, as in `emsjax generate --prompt`"),
        (["--" + "x" * 1000], "needs a command before it"),
    ],
)
def test_a_call_without_a_command_is_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "argv", ["/bin/emsjax"])
    assert program.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert len(err) < 500


@pytest.mark.parametrize("name", program.COMMANDS)
def test_help_of_a_command_imports_no_jax(name: str):
    script = (
        "import sys; from emsjax.__main__ import main; sys.argv = ['/bin/emsjax', *sys.argv[1:]]\n"
        f"status = main(); assert not set(sys.modules) & set({SLOW_IMPORTS!r}), 'slow'\n"
        "sys.exit(status)"
    )
    called = [sys.executable, "-c", script, name, "--help"]
    narrow = os.environ | {"COLUMNS": "80"}
    done = subprocess.run(called, env=narrow, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Usage: emsjax {name} [OPTIONS]" in done.stdout
    # Words that do not fit a column are cut.
    assert "…" not in done.stdout


@pytest.mark.parametrize(
    ("started", "usage", "line"),
    [
        ("/bin/emsjax", "emsjax bench", "emsjax bench --a 'b c'"),
        ("/x/emsjax/__main__.py", "python -m emsjax bench", "python -m emsjax bench --a 'b c'"),
        (
            "/x/emsjax/bench/__main__.py",
            "python -m emsjax.bench",
            "python -m emsjax.bench --a 'b c'",
        ),
        ("/x/emsjax/bench.py", "python -m emsjax.bench", "python -m emsjax.bench --a 'b c'"),
    ],
)
def test_usage_and_records_name_the_command_as_it_was_called(
    started: str,
    usage: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    words = ["--a", "b c"]
    alone = Path(started).stem == "bench" or Path(started).parent.name == "bench"
    monkeypatch.setattr(sys, "argv", [started, *([] if alone else ["bench"]), *words])
    assert command.command_line("bench") == line
    app = command.new_app()

    @app.command()
    def nothing() -> None: ...

    assert command.parse(app, "bench", ["--help"]) == 0
    assert f"Usage: {usage} [OPTIONS]" in capsys.readouterr().out
