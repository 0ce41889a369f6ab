"""Fixtures for pages: an empty working directory, and a default model that needs no download."""

from pathlib import Path

import pytest
from flax import nnx
from transformers import AutoConfig

from tests.tiny import LLAMA_SIZES, words

VOCAB_SIZE = 49_152  # that of the default model, so that the token ids on the pages are valid


@pytest.fixture(autouse=True)
def _restored_registries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs a page in an empty directory and removes what it registers afterwards."""
    from emsjax.models import registry
    from emsjax.pallas_kernels.cache_update import api

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES)
    monkeypatch.setattr(api, "BACKENDS", api.BACKENDS)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a cache directory with a tiny random model in place of the default one."""
    from emsjax.loading.checkpoint import save_checkpoint
    from emsjax.loading.default_model import DEFAULT_NAME
    from emsjax.loading.manifest import Manifest
    from emsjax.models.decoder import DecoderLM
    from emsjax.models.registry import FAMILIES

    sizes = LLAMA_SIZES | {"tie_word_embeddings": True, "vocab_size": VOCAB_SIZE}
    config = AutoConfig.for_model("llama", **sizes).to_dict()
    model = DecoderLM(FAMILIES["llama"].config(config), rngs=nnx.Rngs(0))
    cache = tmp_path_factory.mktemp("cache")
    manifest = Manifest("llama", config, "float32", (2,), "stand-in")
    save_checkpoint(cache / DEFAULT_NAME, nnx.state(model), manifest, words(VOCAB_SIZE))
    return cache
