"""What a checkpoint holds decides whether the output head is the embedding, not its label."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emsjax.loading.conversion import convert_model
from emsjax.loading.load import LoadedModel, find_model, load_model
from tests import tiny

FAMILIES = ("opt", "opt-350m", "gpt2", "llama-tied", "mistral", "qwen2", "qwen3")
HEAD = "lm_head.weight"
pytestmark = pytest.mark.usefixtures("real_models")


def copy(name: str, directory: Path, head: str) -> Path:
    """Writes a checkpoint labelled tied with an own head, with an equal one, or only the head."""
    config = tiny.oracle(name).config.to_dict() | {"tie_word_embeddings": True}
    type(tiny.oracle(name).config).from_dict(config).save_pretrained(directory)
    weights = load_file(tiny.checkpoint(name) / "model.safetensors")
    (embedding,) = (n for n in weights if n.endswith(("embed_tokens.weight", "wte.weight")))
    weights[HEAD] = weights[embedding] * (-1 if head == "own" else 1)
    if head == "only":
        del weights[embedding]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def matrices(loaded: LoadedModel) -> tuple[jax.Array, jax.Array]:
    model = loaded.model
    return model.embedding_kernel, model.output_kernel


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", ["own", "equal", "only"])
def test_tied_label(tmp_path: Path, name: str, head: str) -> None:
    """The matrices are those that `transformers` uses for the same directory."""
    from transformers import AutoModelForCausalLM

    directory = copy(name, tmp_path, head)
    expected = AutoModelForCausalLM.from_pretrained(directory)
    loaded = load_model(directory)
    embedding, output = matrices(loaded)
    theirs = expected.get_input_embeddings(), expected.get_output_embeddings()
    np.testing.assert_array_equal(embedding, theirs[0].weight.detach().numpy())
    np.testing.assert_array_equal(output, theirs[1].weight.detach().numpy())
    assert (loaded.model.head is None) == (head != "own")
    assert loaded.hf_config["tie_word_embeddings"] is (head != "own")


def test_a_conversion_keeps_the_head(tmp_path: Path) -> None:
    directory = copy("llama-tied", tmp_path / "source", "own")
    convert_model(find_model(directory), tmp_path / "converted")
    _, output = matrices(load_model(tmp_path / "converted"))
    np.testing.assert_array_equal(output, matrices(load_model(directory))[1])


def test_a_pickle_keeps_the_head(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    directory = copy("llama-tied", tmp_path, "own")
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(
        {n: torch.from_numpy(w) for n, w in weights.items()}, directory / "pytorch_model.bin"
    )
    _, output = matrices(load_model(directory))
    np.testing.assert_array_equal(output, weights[HEAD])


@pytest.mark.parametrize("half", ["bfloat16", "float32"])
def test_an_equal_head_in_another_dtype_stays_tied(tmp_path: Path, half: str) -> None:
    import ml_dtypes

    directory = copy("llama-tied", tmp_path, "equal")
    weights = load_file(directory / "model.safetensors")
    rounded = weights[HEAD].astype(ml_dtypes.bfloat16)
    weights["model.embed_tokens.weight"] = rounded.astype(np.float32)
    weights[HEAD] = rounded.astype(np.dtype(half))
    save_file(weights, directory / "model.safetensors")
    assert load_model(directory).model.head is None
