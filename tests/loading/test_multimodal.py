"""The text part of a multimodal checkpoint is read, and the other parts are left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emsjax.errors import UserError
from emsjax.loading.hf.multimodal import text_part
from emsjax.loading.load import load_model
from emsjax.loading.named import named_config
from tests.models.logits import our_logits
from tests.tiny import TINY, VOCAB_SIZE

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")

VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


# The type of the whole: the tiny model that is its text part, and what else it has.
WHOLES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {"vision_config": VISION, "mm_tokens_per_image": 4}),
    "mistral3": ("ministral3", {"vision_config": VISION | {"model_type": "pixtral"}}),
    "aya_vision": ("cohere2", {"vision_config": VISION}),
    "cohere2_vision": (
        "cohere2",
        {"vision_config": VISION, "image_token_id": 100, "alignment_intermediate_size": 16},
    ),
}


@pytest.fixture(scope="module", params=WHOLES)
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Returns a tiny model of text and images, and its directory."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    part, more = WHOLES[request.param]
    kind, text = TINY[part]
    config = AutoConfig.for_model(
        request.param,
        text_config=text | {"vocab_size": VOCAB_SIZE, "initializer_range": 0.3, "model_type": kind},
        image_token_index=100,
        attn_implementation="eager",
        **more,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    return model, directory


def renamed(directory: Path, target: Path) -> Path:
    """Copies a checkpoint with the names that `transformers` uses since version 4.52."""
    target.mkdir()
    (target / "config.json").write_bytes((directory / "config.json").read_bytes())
    tensors = load_file(directory / "model.safetensors")
    starts = {
        "language_model.model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.",
    }
    newer = {}
    for name, value in tensors.items():
        old, new = next(((a, b) for a, b in starts.items() if name.startswith(a)), ("", ""))
        newer[name.replace(old, new, 1)] = value
    assert any(name.startswith("model.language_model.") for name in newer)
    save_file(newer, target / "model.safetensors")
    return target


def test_logits_of_text_equal_those_of_the_whole(whole, tmp_path: Path):
    oracle, directory = whole
    tokens = np.random.default_rng(0).integers(3, 99, (2, 40))
    with torch.no_grad():
        theirs = oracle(input_ids=torch.tensor(tokens)).logits.numpy()
    loaded = load_model(directory)
    assert loaded.name == f"{directory.name} (text part)"
    np.testing.assert_allclose(our_logits(loaded.model, tokens, 40), theirs, atol=1e-4, rtol=1e-4)
    newer = load_model(renamed(directory, tmp_path / "newer")).model
    np.testing.assert_array_equal(newer.embedding_kernel, loaded.model.embedding_kernel)
    assert named_config(directory) == loaded.model.config


def test_settings_of_the_whole_reach_the_text_part(whole, tmp_path: Path):
    config = json.loads((whole[1] / "config.json").read_text())
    assert text_part(config | {"eos_token_id": [1, 106]}, "c")["eos_token_id"] == [1, 106]
    (tmp_path / "config.json").write_text(json.dumps(config | {"odd_switch": 3}))
    with pytest.raises(UserError, match=r"odd_switch=3, which emsjax does not know"):
        named_config(tmp_path)


@pytest.mark.parametrize("text", [None, 3, {"model_type": "llama"}])
def test_a_text_part_of_another_type_is_refused(text: Any):
    with pytest.raises(UserError, match="emsjax reads only the text part 'gemma3_text'"):
        text_part({"model_type": "gemma3", "text_config": text}, "config.json")
    with pytest.raises(UserError, match="the text part 'mistral' or 'ministral3' of 'mistral3'"):
        text_part({"model_type": "mistral3", "text_config": text}, "config.json")
