"""The command line of `emsjax.convert`."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from emsjax import convert
from emsjax.loading.load import load_model


def run(*arguments: object) -> int:
    return convert.main([*map(str, arguments)])


def test_converts_a_model(hf_dir: Path) -> None:
    output = hf_dir.parent / "out"
    assert run(hf_dir, output, "--dtype", "bfloat16") == 0
    assert load_model(output).name == "tiny-llama"


@pytest.mark.parametrize("wrong", ["source", "output", "dtype", "weights"])
def test_mistakes_are_one_line(
    hf_dir: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    output = hf_dir.parent / "out"
    arguments = [hf_dir, output]
    if wrong == "source":
        arguments[0] = hf_dir / "nowhere"
    elif wrong == "output":
        output.mkdir()
        (output / "file").touch()
    elif wrong == "dtype":
        arguments += ["--dtype", "int8"]
    else:
        save_file({}, hf_dir / "model.safetensors")
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert "Traceback" not in printed.err


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "emsjax.convert", "/no/such/model", "/no/output"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model '/no/such/model' does not exist")
    assert done.stdout == ""
