"""Loading needs about one model's memory, in every format."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import LAYER, to_bfloat16, write_config

from emsjax.loading.conversion import convert_model
from emsjax.loading.opened import open_model

HERE = Path(__file__).parent
SCALE = 8  # factor on the tiny model's widths
LAYERS = 12

_MEASURE = """
import sys
from pathlib import Path
import jax, pytest, tiny_models
tiny_models.install(pytest.MonkeyPatch())
from emsjax.loading.build import read_weights
from emsjax.loading.opened import open_model
def status(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if key in l)
    return int(line.split()[1]) * 1024
opened = open_model(Path(sys.argv[1]), {"llama"})
jax.block_until_ready(jax.numpy.ones(8) + 1)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
_, params = read_weights(opened, "float32")
jax.block_until_ready(params)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print((status("VmHWM") - before) / size, size)
"""


@pytest.fixture(scope="module")
def big() -> dict[str, np.ndarray]:
    """Returns the tensors of a larger model, about 120 MB in float32."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (64, 64), "norm": (64,)}
    for i in range(LAYERS):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in LAYER.items()}
    return {
        f"model.{name}.weight": rng.random([SCALE * n for n in shape], dtype=np.float32)
        for name, shape in shapes.items()
    }


def write(directory: Path, weights: dict[str, np.ndarray], form: str) -> Path:
    """Writes a checkpoint of the larger model in one of the formats."""
    write_config(
        directory,
        hidden_size=64 * SCALE,
        vocab_size=64 * SCALE,
        intermediate_size=96 * SCALE,
        num_hidden_layers=LAYERS,
        head_dim=16 * SCALE,
        tie_word_embeddings=True,
    )
    if form == "pickle":
        torch = pytest.importorskip("torch")
        tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        held = to_bfloat16(weights) if form == "bfloat16" else weights
        save_file(held, directory / "model.safetensors")
    if form == "converted":
        convert_model(open_model(directory, {"llama"}), directory / "converted")
        return directory / "converted"
    return directory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory use from /proc")
@pytest.mark.parametrize("form", ["safetensors", "bfloat16", "pickle", "converted"])
def test_peak_is_about_one_model(tmp_path: Path, big: dict[str, np.ndarray], form: str) -> None:
    command = [sys.executable, "-c", _MEASURE, str(write(tmp_path, big, form))]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    models, size = map(float, done.stdout.split())
    assert size > 50e6
    renewed = 64e6 if form == "pickle" else 0  # bytes read before the file is mapped again
    assert models < 1.3 + renewed / size
