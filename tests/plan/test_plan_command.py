"""`python -m emsjax.plan`: output, error messages, and the devices it must not touch."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emsjax.costs.hardware import HARDWARE
from emsjax.loading.published import PUBLISHED
from emsjax.plan import __main__ as plan
from emsjax.plan.forecast import Forecast, make_forecast
from emsjax.plan.setting import Setting

SMALL = ["--model", "opt-125m", "--batch-size", "4", "--max-model-len", "512"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch):
    """Restores the environment variables that the command sets for its own process."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_the_details_of_one_forecast(capsys: pytest.CaptureFixture[str]):
    assert plan.main([*SMALL, "--topology", "h100", "--no-compile"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(
        "opt-125m in bfloat16 on one NVIDIA H100 SXM: 4 samples of 512 tokens\n\nIt fits: "
    )
    assert "Nothing was compiled" in out
    assert "3350 GB/s" in out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert any("plain" in line for line in lines)
    assert any("prompts" in line for line in lines)
    assert "by the compiler" not in "".join(lines)


@pytest.mark.parametrize(("given", "header"), [("0.7", "0.5 0.7 0.9"), ("0.6", "0.5 0.6 0.7 0.9")])
def test_speedups_are_shown_for_other_acceptances(
    given: str, header: str, capsys: pytest.CaptureFixture[str]
):
    assert plan.main([*SMALL, "--topology", "h100", "--acceptance", given, "--no-compile"]) == 0
    table = capsys.readouterr().out.partition("Planned speedup by acceptance:\n\n")[2].splitlines()
    assert table[0].replace("|", " ").split() == ["batch", *header.split()]
    speedups = [float(cell) for cell in table[2].replace("|", " ").split()[1:]]
    assert speedups == sorted(set(speedups))


def test_several_forecasts_are_a_table(capsys: pytest.CaptureFixture[str]):
    arguments = ["--model", "llama-3-70b", "--topology", "h100", "--topology", "V5E-1"]
    assert plan.main([*SMALL, *arguments, "--no-compile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|") for line in lines[2:] if line.startswith("|")]
    assert [(row[1].strip(), row[2].strip(), row[4].strip()) for row in rows] == [
        ("opt-125m", "NVIDIA H100 SXM", "yes"),
        ("opt-125m", "TPU v5e", "yes"),
        ("llama-3-70b", "NVIDIA H100 SXM", "no"),
        ("llama-3-70b", "TPU v5e", "no"),
    ]
    # Why so many of the speedups are the same number.
    (said,) = [line for line in lines if "--acceptance" in line]
    assert "with probability 0.7," in said
    assert "7 draft tokens then emits 3.14 tokens" in said


def test_steps_of_more_rows_read_more_experts(capsys: pytest.CaptureFixture[str]):
    model = ["--model", "Qwen3-30B-A3B", "--topology", "h200", "--batch-size", "8"]
    assert plan.main(model) == 0
    out = capsys.readouterr().out
    header, _, *rows = (line.split("|")[1:-1] for line in _table_after(out, "Time of a step"))
    assert [cell.strip() for cell in header[3:5]] == ["GB of weights read", "ms, counted"]
    read = {int(row[0]): (float(row[3]), float(row[4])) for row in rows}
    # 2.4 GB are read by every step, and 40% and 98% of the 58.0 GB of experts are chosen.
    assert read[8][0] == pytest.approx(2.4 + 0.403 * 58.0, abs=0.1)
    assert read[64][0] == pytest.approx(2.4 + 0.984 * 58.0, abs=0.1)
    assert read[64][1] > 2 * read[8][1]
    assert "Experts: " in out
    # The planner verifies less than it does for a model that reads all weights anyway.
    drafted = {name: _drafted(name, capsys) for name in ("qwen3-30b-a3b", "qwen3-32b")}
    assert drafted["qwen3-30b-a3b"] < drafted["qwen3-32b"]


def _table_after(out: str, title: str) -> list[str]:
    return out.partition(title)[2].split("\n\n")[1].splitlines()


def _drafted(name: str, capsys: pytest.CaptureFixture[str]) -> float:
    """Returns the mean number of draft tokens that the planner verifies at batch 4."""
    options = ["--topology", "h200", "--batch-size", "4", "--acceptance", "0.5", "--json"]
    assert plan.main(["--model", name, *options]) == 0
    [found] = json.loads(capsys.readouterr().out)
    return next(s for s in found["speedups"] if s["batch_size"] == 4)["counted"]["drafted"]


def test_json_output(capsys: pytest.CaptureFixture[str]):
    arguments = ["--topology", "a100", "--acceptance", "1", "--draft-length", "3", "--json"]
    assert plan.main([*SMALL, *arguments, "--no-compile"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["fits"], found["device"]) == (True, "NVIDIA A100 SXM")
    assert found["memory"]["compiled"] is False
    parts = ("weights", "cache", "state", "temporaries")
    assert found["memory"]["total"] == sum(found["memory"][part] for part in parts)
    assert found["memory"]["weights"] == 2 * 125_239_296
    assert found["steps"][0]["max_q_len"] == 1
    assert found["speedups"][0]["counted"] == pytest.approx(
        {"planned": 4, "drafted": 3, "fixed": 4}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "opt-7b"], "no configuration 'opt-7b'; .* such as opt-6.7b, "),
        (["--acceptance", "1.5"], "--acceptance is 1.5; it must be a probability"),
        (["--acceptance", "-0.1"], "--acceptance is -0.1; it must be a probability"),
        (["--acceptance", "nan"], "--acceptance is nan; it must be a probability"),
        (["--topology", "v99"], f"--topology v99 is unknown; choose from {', '.join(HARDWARE)}"),
        (
            ["--batch-size", "0"],
            "--batch-size is 0; it must be a whole number, between 1 and 65536",
        ),
        (["--max-model-len", "2049"], "--max-model-len is 2049; .* between 2 and 2048"),
        (["--max-model-len", "0"], "--max-model-len is 0; .* between 2 and 2048"),
        (["--context", "513"], "--context is 513; .* between 1 and 512"),
        (["--draft-length", "0"], "--draft-length is 0; .* between 1 and 64"),
        (["--dtype", "int8"], "--dtype int8 is unknown; choose from bfloat16"),
        (["--frobnicate"], "No such option: --frobnicate; see --help"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    # A repeated option replaces the earlier value, except --model, which adds to it.
    given = SMALL[2:] if "--model" in arguments else SMALL
    assert plan.main([*given, "--topology", "h100", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.match(f"error: .*{message}", err), err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_forecasts_made_before_an_interrupt_are_printed(
    form: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def stopping(setting: Setting, *rest: Any) -> Forecast:
        if setting.name == "llama-3-8b":
            raise KeyboardInterrupt
        return make_forecast(setting, *rest)

    monkeypatch.setattr("emsjax.plan.options.make_forecast", stopping)
    models = ["--model", "opt-125m", "--model", "llama-3-8b"]
    assert plan.main([*models, "--topology", "h100", "--no-compile", *form]) == 130
    out, err = capsys.readouterr()
    assert "opt-125m" in out
    assert "llama-3-8b" not in out
    assert err == "interrupted\n"


@pytest.mark.parametrize(
    ("devices", "compiler"),
    [(("v5e", "v6e"), "TPU compiler, libtpu"), (("l4", "h100"), "GPU compiler, jax-cuda13-plugin")],
)
def test_a_missing_compiler_is_reported(
    devices: tuple[str, str],
    compiler: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    version, package = importlib.metadata.version, compiler.rsplit(maxsplit=1)[-1]

    def missing(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    both = [part for name in devices for part in ("--topology", name)]
    assert plan.main([*SMALL, *both, "--compile"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.match(f"error: compiling needs the {compiler}, .*; .*, or give --no-compile", err)
    # Who does not ask for the compiler gets the arithmetic and a note, once for both devices.
    assert plan.main([*SMALL, *both]) == 0
    out, err = capsys.readouterr()
    assert "Nothing was compiled" in out
    assert re.match(f"nothing is compiled, .*needs the {compiler}", err)
    assert err.count("\n") == 1
    assert plan.main([*SMALL, *both, "--no-compile", "--json"]) == 0
    found, _ = json.loads(capsys.readouterr().out)
    assert found["versions"][package] is None


@pytest.mark.parametrize("model", ["smollm2-135m", "config.json"])
def test_arithmetic_imports_none_of_the_slow_packages(model: str, tmp_path: Path):
    """They would take seconds, for an answer that takes milliseconds."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PUBLISHED["qwen3-0.6b"] | {"torch_dtype": "bfloat16"}))
    named = str(file) if model == "config.json" else model
    script = (
        "import sys\n"
        "from emsjax.plan import __main__ as plan\n"
        f"status = plan.main(['--no-compile', '--model', {named!r}, '--json'])\n"
        "slow = {'jax', 'jaxlib', 'flax', 'orbax', 'transformers', 'torch', 'huggingface_hub'}\n"
        "assert not slow & sys.modules.keys(), slow & sys.modules.keys()\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["model"] == named


def test_no_device_of_this_machine_is_touched():
    """The command restricts jax to the CPU before jax is imported."""
    script = (
        "import os, sys\n"
        "from emsjax.plan import __main__ as plan\n"
        "assert 'jax' not in sys.modules\n"
        f"status = plan.main({[*SMALL, '--topology', 'h100', '--no-compile']!r})\n"
        "import jax\n"
        "assert {d.platform for d in jax.devices()} == {'cpu'}, jax.devices()\n"
        "sys.exit(status or os.environ['JAX_PLATFORMS'] != 'cpu')\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cuda,tpu"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


EIGHT = ["--model", "llama-3-8b", "--batch-size", "32", "--max-model-len", "2048", "--no-compile"]


def test_eight_devices_are_split_as_is_best(capsys: pytest.CaptureFixture[str]):
    assert plan.main([*EIGHT, "--topology", "v5e-8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("llama-3-8b in bfloat16 on 8 TPU v5e: 32 samples of 2048 tokens\n\nWays")
    _, _, *rows = (line.split("|")[1:-1] for line in _table_after(out, "Ways to split"))
    ways = [[cell.strip() for cell in row] for row in rows]
    assert [way[:4] for way in ways] == [
        ["8", "1", "4", "no"],
        ["4", "2", "8", "yes"],
        ["2", "4", "16", "yes"],
        ["1", "8", "32", "yes"],
    ]
    fitting = [way for way in ways if way[3] == "yes"]
    best = max(fitting, key=lambda way: int(way[-1]))
    assert best == ways[2]
    assert "The fastest that fits: --data-parallel 2 --tensor-parallel 4." in out
    assert f"It fits: each device needs {best[4]} GB" in out
    header, _, plain, *_ = _table_after(out, "Time of a step")
    assert "of these exchanges" in header
    assert float(plain.split("|")[4]) == float(best[6])
    assert "1 us from device to device, and 80% of 100 GB/s" in out


def test_replicas_of_several_devices(capsys: pytest.CaptureFixture[str]):
    """So many samples are decoded faster by GPUs that read the weights twice."""
    many = [*EIGHT, "--batch-size", "1024", "--topology", "h100x8"]
    assert plan.main([*many, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["topology"], found["devices"], found["samples"]) == ("h100x8", 8, 1024)
    assert found["replicas"] * found["tensor_parallel"] == 8
    assert found["replicas"] > 1
    assert found["batch_size"] * found["replicas"] == 1024
    assert found["assumptions"]["link"]["start_seconds"] == 6.6e-6
    best = max((each for each in found["splits"] if each["fits"]), key=lambda s: s["planned_rate"])
    assert best["replicas"] == found["replicas"]
    assert best["memory"] == found["memory"]
    assert plan.main(many) == 0
    out = capsys.readouterr().out
    assert f"Time of a step of one replica of {found['batch_size']} samples" in out
    most = found["largest_batch_size"]
    assert f"is {most} a replica, {most * found['replicas']} in all." in out


def test_one_device_and_several_in_one_table(capsys: pytest.CaptureFixture[str]):
    assert plan.main([*EIGHT, "--topology", "v6e", "--topology", "v5p-16"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("|") for line in out.splitlines()[2:] if line.startswith("|")]
    assert [row[2].strip() for row in rows] == ["TPU v6e", "8 TPU v5p (2 x 4)"]
    assert "(2 x 4): replicas, and devices each" in out
    assert "v5p-16 is two hosts of four chips each" in out


def test_another_split_if_the_compiler_says_that_the_best_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def compiled(setting: Setting, *rest: Any) -> Forecast:
        found = make_forecast(setting, *rest)
        return replace(found, usable_bytes=1) if setting.shards == 4 else found

    monkeypatch.setattr("emsjax.plan.options.make_forecast", compiled)
    assert plan.main([*EIGHT, "--topology", "v5e-8", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["fits"], found["replicas"], found["tensor_parallel"]) == (True, 1, 8)


def test_a_model_that_fits_in_no_way(capsys: pytest.CaptureFixture[str]):
    assert plan.main(["--model", "llama-3-70b", "--topology", "v5e-4", "--no-compile"]) == 0
    out = capsys.readouterr().out
    assert "No split fits; this one holds most samples: --tensor-parallel 4." in out
    assert "Not even one sample of this length fits." in out
