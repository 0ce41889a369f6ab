"""Only one process trains in a directory, and no library that fails at the edge ends a training."""

import subprocess
import sys
from pathlib import Path

import pytest

from emsjax.errors import UserError
from emsjax.train import curves, run
from emsjax.train.fit import Progress
from emsjax.train.record import read_texts
from emsjax.train.run import train
from emsjax.train.settings import Training

_HOLDS = """
import sys, time
from pathlib import Path
from emsjax.host.locks import alone_in
with alone_in(Path(sys.argv[1]), "busy"):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_a_second_training_in_a_directory_is_refused(tmp_path: Path):
    output = tmp_path / "new" / "run"
    training = Training(model="no/such", inputs=(), output=output)
    command = [sys.executable, "-c", _HOLDS, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        with pytest.raises(UserError, match=r"another process is training in .*/run; give another"):
            train(training)
        process.kill()
    with pytest.raises(UserError, match="no/such"):
        train(training)


def test_a_plot_that_fails_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object):
        raise ZeroDivisionError("no room for the axes")

    monkeypatch.setattr(curves, "_draw", fail)
    seen: list[Progress] = []
    run._Log(tmp_path, seen.append).add(Progress(1, 2.0, [0.0] * 5))
    assert len(seen) == 1
    assert "curves.png cannot be drawn (ZeroDivisionError: no room" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(99), b"\x93NUMPY", b"no"])
def test_damaged_texts(content: bytes, tmp_path: Path):
    (tmp_path / "000000.npz").write_bytes(content)
    with pytest.raises(UserError, match="is damaged") as caught:
        list(read_texts(tmp_path))
    assert len(str(caught.value)) < 500
