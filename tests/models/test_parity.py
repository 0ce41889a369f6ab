"""Compares the logits of every position and family with PyTorch `transformers`, in float32."""

import numpy as np
import pytest

from emsjax.loading.load import load_model
from emsjax.pallas_kernels.backends import noting_backends
from tests.models.logits import our_logits
from tests.tiny import TINY, VOCAB_SIZE, checkpoint, oracle

torch = pytest.importorskip("torch")
NORMED_OR_SCALED = ("qwen3", "exaone4", "olmo2", "ministral3")


# Passes of one length are compiled once.
@pytest.mark.parametrize(("chunk", "length"), [(1, 30), (7, 98), (100, 100)])
@pytest.mark.parametrize("name", TINY)
def test_logits_of_every_position_equal_transformers(name: str, chunk: int, length: int):
    tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (3, length))
    with torch.no_grad():
        theirs = oracle(name)(torch.tensor(tokens)).logits.numpy()
    ours = our_logits(load_model(checkpoint(name)).model, tokens, chunk)
    # The tolerance is for float32 over 3 layers. The scale of the logits is about 1 to 10.
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    assert np.abs(theirs).max() > 0.5


@pytest.mark.parametrize(
    "name", ["gemma3", *(pytest.param(x, marks=pytest.mark.slow) for x in NORMED_OR_SCALED)]
)
def test_the_kernels_of_tpus_give_the_logits_of_transformers(
    name: str, request: pytest.FixtureRequest
):
    """Interpreted, with norms of queries and keys, several rotary tables or a factor on queries."""
    tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (3, 14))
    with torch.no_grad():
        theirs = oracle(name)(torch.tensor(tokens)).logits.numpy()
    model = load_model(checkpoint(name)).model
    request.getfixturevalue("interpreting_tpu")
    with noting_backends() as picked:
        ours = our_logits(model, tokens, chunk=7)
    assert picked["ragged_attention"] == "tpu"
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
