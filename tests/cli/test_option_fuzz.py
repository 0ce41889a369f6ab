"""Random options of every command: work that can begin, or one short sentence and status 2."""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from emsjax import __main__ as program
from emsjax.bench import __main__ as bench
from emsjax.convert import _app as convert
from emsjax.errors import UserError
from emsjax.generate import __main__ as generate
from emsjax.plan import __main__ as plan
from emsjax.serve import __main__ as serve
from emsjax.train import __main__ as train
from tests.fuzzing import INPUTS, survives

APPS = {
    "generate": generate._app,
    "serve": serve._app,
    "bench": bench._app,
    "plan": plan._app,
    "train": train._app,
    "convert": convert,
}
NUMBERS = ("0", "1", "2", "7", "-1", "0.5", "1.5", "-0.0", "1e400", "nan", "inf", "9" * 20)
TEXTS = ("", " ", "two", "-", "--", "\n", "x" * 5000, "\udcff", "9" * 5000, "\u2028", "'a'", "~x")
NAMES = (
    "ems", "none", "vanilla", "unpad-kv", "combined", "prompt-lookup", "draft-model", "float32",
    "auto", "transformers", "simulated", "v5e", "h200", "opt-125m", "1,2,4", "1,,x", "0.7", "a@0",
    "owner/name", "a..b", "models--x", "in.jsonl", "in.txt", "no/such", ".", "out", "p.html",
)  # fmt: skip


class BegunError(Exception):
    """The command has checked its options, and would begin to load a model."""


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ends each command where it would load a model, in an empty directory without network."""

    def begin(*_: object, **__: object) -> Any:
        raise BegunError

    def forecasts(models: Any, devices: Any, options: Any, say: Any) -> Iterator[Any]:
        yield from make_forecasts(models, devices, options._replace(compile=False), say)
        raise BegunError

    from emsjax.plan.options import make_forecasts

    monkeypatch.setattr("emsjax.plan.options.make_forecasts", forecasts)
    monkeypatch.setattr("emsjax.plan.__main__._prepare_environment", lambda *_, **__: None)
    for place in (
        "emsjax.generate.run._load",
        "emsjax.serve.run._bound",
        "emsjax.bench.run.real_target",
        "emsjax.bench.run.random_target",
        "emsjax.train.run.load_model",
        "emsjax.loading.load.open_model",
    ):
        monkeypatch.setattr(place, begin)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("EMSJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["emsjax"])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def arguments_of(chance: random.Random, command: str) -> list[str]:
    """Returns a few random arguments, most of which the command has."""
    given = []
    for each in chance.choices(typer.main.get_command(APPS[command]).params, k=chance.randrange(6)):
        if each.name in ("help", "version"):
            continue
        number = each.metavar == "N" or isinstance(each.default, int | float)
        plausible = NUMBERS if number else NAMES
        value = chance.choice(plausible if chance.random() < 0.7 else NUMBERS + TEXTS + NAMES)
        if each.param_type_name == "argument":
            given.append(value)
        elif getattr(each, "is_flag", False):
            given.append(chance.choice(each.opts + each.secondary_opts))
        else:
            given += [each.opts[-1], value] if chance.random() < 0.95 else [each.opts[-1]]
    needed = {"generate": "--prompt=a", "bench": "--input=in.jsonl", "train": "--input=in.txt"}
    output = {"bench": ["--output=out"], "train": ["--output=out"], "convert": ["in.gguf", "out"]}
    usual = [*output.get(command, ()), *([needed[command]] if command in needed else ())]
    return [*usual, *given] if chance.random() < 0.8 else given


def test_options(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random("options")
    Path("in.jsonl").write_text('{"prompt": "a"}\n')
    Path("in.txt").write_text("a\n")
    Path("in.gguf").touch()
    begun = dict.fromkeys(APPS, 0)

    def call(command: str, arguments: list[str]) -> None:
        stdin = io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}'))
        monkeypatch.setattr("sys.stdin", stdin)
        try:
            status = program.main([command, *arguments])
        except BegunError:
            begun[command] += 1
            return
        *_, said = capfd.readouterr().err.splitlines() or [""]
        assert status == 2, said
        assert said.startswith("error: ")
        raise UserError(said.removeprefix("error: "))

    for number in range(INPUTS):
        command = list(APPS)[number % len(APPS)]
        arguments = arguments_of(chance, command)
        survives(lambda: call(command, arguments), [command, *arguments])  # noqa: B023
    assert all(0 < times < INPUTS / len(APPS) for times in begun.values()), begun
