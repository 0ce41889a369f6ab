"""Mutated published heads: success or one sentence under 500 characters, and no hang."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from emsjax.loading.head_load import find_head, load_head
from emsjax.loading.load import LoadedModel, load_model
from tests.drafters import block_heads, eagle_heads
from tests.fuzzing import INPUTS, survives, text_of
from tests.tiny import checkpoint

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")

# Names that other kinds, other layouts or other numbers of heads would have.
STRANGE = (
    *("0.0.linear.weight", "0.0.linear.bias", "9.0.linear.weight", "123456789.0.linear.weight"),
    *("blocks.x", "blocks.0.layers.0.weight", "blocks.0.layers.77777777.weight"),
    *("lm_head.weight", "lm_heads.0.weight", "medusa_heads.0.0.linear.weight", "token_map", "d2t"),
    *("fc.weight", "model.fc.weight", "fc.bias", "fc_norm.7.weight", "hidden_norm.weight"),
    *("midlayer.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight", "embed_tokens.weight"),
    *("layers.0.self_attn.q_norm.weight", "mtp_layers.0.input_proj.weight"),
    *("model.mtp_layers.7.x", "layers.61.eh_proj.weight"),
)


@pytest.fixture(scope="module")
def target() -> LoadedModel:
    return load_model(checkpoint(eagle_heads.TARGET))


def damaged(rng: random.Random, whole: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns tensors of which some are missing, renamed or of another shape or type."""
    held = dict(whole)
    for _ in range(rng.choice([0, 1, 1, 2])):
        name, action = rng.choice(sorted(held)), rng.random()
        tensor = held.pop(name)
        if action < 0.4:
            held[rng.choice([*STRANGE, name + "x"])] = tensor
        elif action < 0.6:
            held[name] = tensor[: rng.choice([0, 1])]
        elif action < 0.8:
            held[name] = tensor.astype(rng.choice([np.int32, np.int64, np.float16, np.uint8]))
        if not held:
            held["x"] = np.zeros(1, np.float32)
    return {name: np.ascontiguousarray(tensor) for name, tensor in held.items()}


@pytest.mark.parametrize("module", [eagle_heads, block_heads])
def test_heads(module: Any, tmp_path: Path, target: LoadedModel) -> None:
    rng = random.Random(7)
    configs = getattr(module, "CONFIGS", None) or {n: f().config for n, f in module.FORMS.items()}
    for number in range(INPUTS // 2):
        name = sorted(configs)[number % len(configs)]
        text = (
            text_of(rng, dict(configs[name])) if rng.random() < 0.7 else json.dumps(configs[name])
        )
        held = damaged(rng, module.tensors(name))
        (tmp_path / "config.json").write_text(text)
        save_file(held, tmp_path / "model.safetensors")

        def load() -> None:
            head = find_head(tmp_path)
            if head is not None:
                load_head(head, target, 3, 4)

        survives(load, (name, text, sorted(held)))
