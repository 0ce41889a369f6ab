"""How drafts trained for a target are kept in memory."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.devices import bytes_of_device
from emsjax.loading.draft_checkpoint import DraftManifest, probe, save_draft
from emsjax.loading.load import load_model
from emsjax.loading.trained_draft import load_trained
from emsjax.models.recurrent_draft import RecurrentConfig, RecurrentDraft
from emsjax.pallas_kernels.quantised import Quantised, floats
from tests import tiny

TOKENS = np.arange(0, tiny.VOCAB_SIZE, 2)


@pytest.mark.parametrize("value", [None, np.nan, np.inf])
def test_on_a_cpu_a_draft_is_narrow_unless_a_weight_is_not_a_number(
    tmp_path: Path, value: float | None
):
    target = load_model(tiny.checkpoint("llama"))
    model = target.model
    kernel = model.head.kernel
    if value is not None:
        kernel[...] = kernel[...].at[TOKENS[3], 1].set(value)
    width = model.hidden_size
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_layers": 1}
    draft = RecurrentDraft(RecurrentConfig(width, 16, 1), rngs=nnx.Rngs(0))
    save_draft(tmp_path, draft, TOKENS, DraftManifest("llama", probe(model), sizes, "nothing"))

    drafter = load_trained(tmp_path, target, 3, 1)
    params, shared = drafter.weights
    assert {each.dtype for each in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert isinstance(shared.head, Quantised) == (value is None)
    assert drafter.read_bytes == bytes_of_device(params) + bytes_of_device(shared.head)
    exact = np.asarray(kernel[...])[TOKENS]
    allowed = np.abs(exact).max() / 127 if value is None else 0
    np.testing.assert_allclose(floats(shared.head), exact, rtol=0, atol=allowed)
