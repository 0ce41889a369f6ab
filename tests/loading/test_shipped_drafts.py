"""The drafts that the package ships are complete and small."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import emsjax
from emsjax.loading.draft_checkpoint import read_draft, read_manifest

DRAFTS = sorted((Path(emsjax.__file__).parent / "drafts").glob("*/draft.json"))
MOST_BYTES = 16 * 2**20


def test_the_default_model_has_a_draft():
    assert "SmolLM2-135M-Instruct" in {read_manifest(file.parent).target for file in DRAFTS}


@pytest.mark.parametrize("file", DRAFTS, ids=lambda file: file.parent.name)
def test_a_shipped_draft_is_complete_and_describes_its_training(file: Path):
    manifest = read_manifest(file.parent)
    _, ids = read_draft(file.parent, jnp.float32)
    assert len(ids) > 1000
    assert manifest.trained_on
    accepted = manifest.evaluation["accepted_tokens_by_draft_length"]
    assert len(accepted) >= 4
    assert (np.diff(accepted) >= 0).all()
    assert sum(each.stat().st_size for each in file.parent.iterdir()) < MOST_BYTES
