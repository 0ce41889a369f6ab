"""emsjax checkpoints: round trips, atomic writes and damaged files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_checkpoints import write_gguf

from emsjax.errors import UserError
from emsjax.host import files as atomic
from emsjax.loading.build import read_weights
from emsjax.loading.conversion import convert_model
from emsjax.loading.opened import open_model

HERE = Path(__file__).parent
Weights = dict[str, np.ndarray]


def converted(directory: Path, dtype: str = "auto") -> Path:
    output = directory.parent / "converted"
    convert_model(open_model(directory, {"llama"}), output, dtype)
    return output


def flat(directory: Path, dtype: str = "float32") -> dict[str, np.ndarray]:
    _, state = read_weights(open_model(directory, {"llama"}), dtype)
    return {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(hf_dir: Path, dtype: str) -> None:
    output = converted(hf_dir, dtype)
    expected, got = flat(hf_dir, dtype), flat(output, dtype)
    assert expected.keys() == got.keys()
    for path, value in expected.items():
        assert got[path].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(got[path], value, err_msg=path)
    assert open_model(output, {"llama"}).source.dtype == dtype


def test_config_and_end_of_text_survive(hf_dir: Path) -> None:
    (hf_dir / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    before, after = open_model(hf_dir, {"llama"}), open_model(converted(hf_dir), {"llama"})
    assert after.eos_token_ids == before.eos_token_ids == (2, 7)
    assert after.hf_config == json.loads(json.dumps(before.hf_config))
    assert after.name == "tiny-llama"
    assert after.tokenizer() is None


def test_a_converted_model_can_be_converted_again(hf_dir: Path) -> None:
    again = hf_dir.parent / "again"
    convert_model(open_model(converted(hf_dir), {"llama"}), again, "bfloat16")
    np.testing.assert_array_equal(flat(again)["norm"], flat(hf_dir, "bfloat16")["norm"])


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # irrelevant on one device
def test_orbax_can_restore_the_parameters(hf_dir: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(converted(hf_dir) / "params")
    np.testing.assert_array_equal(tree["blocks"]["down"], flat(hf_dir)["blocks.down"])


def test_quantised_gguf_becomes_float32(tmp_path: Path, weights: Weights) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "m.gguf", weights, kind=kind)
    output = converted(path)
    assert json.loads((output / "emsjax.json").read_text())["dtype"] == "float32"
    np.testing.assert_array_equal(flat(output)["embed"], flat(path)["embed"])


def test_a_nonempty_output_is_refused_and_kept(hf_dir: Path) -> None:
    (hf_dir.parent / "converted").mkdir()
    (hf_dir.parent / "converted" / "precious").touch()
    with pytest.raises(UserError, match="already exists and is not empty"):
        converted(hf_dir)
    assert [p.name for p in (hf_dir.parent / "converted").iterdir()] == ["precious"]


def test_empty_output_directory_is_used(hf_dir: Path) -> None:
    (hf_dir.parent / "converted").mkdir()
    assert flat(converted(hf_dir))


def test_a_failed_conversion_leaves_nothing(hf_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy", fail)
    (hf_dir / "generation_config.json").write_text("{}")
    before = set(hf_dir.parent.iterdir())
    with pytest.raises(KeyboardInterrupt):
        converted(hf_dir)
    assert set(hf_dir.parent.iterdir()) == before


_KILLED = """
import shutil, sys, time
from pathlib import Path
import pytest, tiny_models
tiny_models.install(pytest.MonkeyPatch())
from emsjax.loading.conversion import convert_model
from emsjax.loading.opened import open_model
def hang(*_):
    print("writing", flush=True)
    time.sleep(60)
shutil.copy = hang  # by then everything except the manifest is written
convert_model(open_model(Path(sys.argv[1]), {"llama"}), Path(sys.argv[2]))
"""


def test_a_killed_conversion_leaves_nothing_half_written(hf_dir: Path) -> None:
    (hf_dir / "generation_config.json").write_text("{}")
    output = hf_dir.parent / "converted"
    command = [sys.executable, "-c", _KILLED, str(hf_dir), str(output)]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    leftover = hf_dir.parent / ".converted.partial"
    assert any(leftover.iterdir())
    assert flat(converted(hf_dir))
    assert not leftover.exists()


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    with atomic.new_directory(tmp_path / "a") as first:
        (first / "first").touch()
        refused = pytest.raises(UserError, match=r"another process is writing .*/a; wait for it")
        with refused, atomic.new_directory(tmp_path / "a"):
            pytest.fail("the block must not run")
        assert first.is_dir()  # not removed as a leftover
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unwritable_output(hf_dir: Path) -> None:
    (hf_dir.parent / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        convert_model(open_model(hf_dir, {"llama"}), hf_dir.parent / "file" / "output")


def test_truncated_and_missing_parameters_are_named(hf_dir: Path) -> None:
    output = converted(hf_dir)
    chunk = next(p for p in (output / "params" / "blocks.down").iterdir() if p.name == "0.0.0")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    shutil.rmtree(output / "params" / "norm")
    with pytest.raises(UserError, match=r"missing norm; truncated blocks\.down"):
        flat(output)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"format": 99}', "format this version cannot read"),
        ('{"format": 1, "model_type": "llama"}', "is damaged"),
    ],
)
def test_damaged_manifest(hf_dir: Path, content: str, reason: str) -> None:
    output = converted(hf_dir)
    (output / "emsjax.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        flat(output)


def test_compressed_arrays_are_refused(hf_dir: Path) -> None:
    import orbax.checkpoint as ocp

    output = converted(hf_dir)
    shutil.rmtree(output / "params")
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(output / "params", {"norm": jnp.ones(4)})
    with pytest.raises(UserError, match="another program wrote it"):
        flat(output)
