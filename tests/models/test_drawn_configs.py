"""Every flag that a family's configuration has, at random: the logits are those of PyTorch.

A flag that is ignored is a wrong text. Three configurations of each family are tried;
`EMSJAX_CONFIG_EXAMPLES=200 scripts/test tests/models/test_drawn_configs.py` tries more.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emsjax.loading.hf.defaults import type_of_transformers
from emsjax.loading.hf.keys import HARMLESS
from emsjax.loading.load import load_model
from emsjax.models.registry import FAMILIES
from tests.models.drawn_configs import configs
from tests.models.drawn_flags import FLAGS
from tests.models.drawn_ropes import LENGTH
from tests.models.logits import our_logits
from tests.tiny import VOCAB_SIZE, random_model

torch = pytest.importorskip("torch")
# Keys that `configs` sets itself, as sizes or for the rotary embedding.
SIZES = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("num_key_value_heads", "num_kv_heads", "head_dim", "max_position_embeddings"),
    *("n_embd", "n_layer", "n_head", "n_positions"),
    *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("rope_parameters", "original_max_position_embeddings"),
}
# Flags of which only the default is supported; `test_config_keys` sees the others refused.
REFUSED = {
    *("is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "layer_norm_elementwise_affine"),
    *("alibi", "attn_logit_softcapping"),
}
EXAMPLES = settings(
    max_examples=int(os.environ.get("EMSJAX_CONFIG_EXAMPLES", "3")),
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", FAMILIES)
@EXAMPLES
@given(data=st.data())
def test_logits_equal_transformers_whatever_the_flags(name: str, data: st.DataObject):
    given_config = data.draw(configs(name))
    model = random_model(name, given_config, seed=0)
    tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (2, LENGTH))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    with tempfile.TemporaryDirectory() as directory:
        saved(model, name, given_config, Path(directory))
        ours = our_logits(load_model(directory).model, tokens, LENGTH)
    if "num_experts_per_tok" in given_config:
        model.set_experts_implementation("eager")  # the others take no float64
    with torch.no_grad():
        exact = model.double()(torch.tensor(tokens)).logits.numpy()
    # Some multipliers make scores so large that rounding shows, in PyTorch as well.
    rounding = np.abs(theirs - exact).max()
    np.testing.assert_allclose(ours, theirs, atol=max(1e-4, 8 * rounding), rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_flag_is_drawn(name: str):
    """A flag that a new version of `transformers` adds must be drawn, or refused."""
    from transformers import CONFIG_MAPPING

    known = CONFIG_MAPPING[type_of_transformers(name)]
    keys = {field.name for field in dataclasses.fields(known)}
    known = FLAGS[name].keys() | SIZES | REFUSED | HARMLESS | FAMILIES[name].harmless
    assert keys - known == set()


def saved(model: Any, name: str, given_config: dict[str, Any], directory: Path) -> None:
    """Writes a checkpoint whose configuration is as given, not as `transformers` rewrites it."""
    model.save_pretrained(directory)
    content = {"model_type": name, "vocab_size": VOCAB_SIZE} | given_config
    (directory / "config.json").write_text(json.dumps(content))
