"""What pages find: a directory of their own, and a default model that needs no download."""

from pathlib import Path

import pytest
from flax import nnx
from transformers import AutoConfig, PreTrainedTokenizerFast

from tests.tiny import LLAMA_SIZES

VOCAB_SIZE = 49_152  # as the default model's, so that a page's token ids mean something


@pytest.fixture(autouse=True)
def _left_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A page works in an empty directory, and what it registers is gone after it."""
    from emsjax.models import registry
    from emsjax.pallas_kernels.cache_update import api

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES)
    monkeypatch.setattr(api, "BACKENDS", api.BACKENDS)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with a tiny random model in place of the default one."""
    from emsjax.loading.checkpoint import Manifest, save_checkpoint
    from emsjax.loading.default_model import DEFAULT_NAME
    from emsjax.models.decoder import DecoderLM
    from emsjax.models.registry import FAMILIES

    sizes = LLAMA_SIZES | {"tie_word_embeddings": True, "vocab_size": VOCAB_SIZE}
    config = AutoConfig.for_model("llama", **sizes).to_dict()
    model = DecoderLM(FAMILIES["llama"].config(config), rngs=nnx.Rngs(0))
    cache = tmp_path_factory.mktemp("cache")
    manifest = Manifest("llama", config, "float32", (2,), "stand-in")
    save_checkpoint(cache / DEFAULT_NAME, nnx.state(model), manifest, _tokenizer())
    return cache


def _tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: w0, w1, ..., and w0 for every other."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{number}": number for number in range(VOCAB_SIZE)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w0")
    tokenizer.chat_template = "{% for m in messages %}w5 {{ m['content'] }} {% endfor %}w6"
    return tokenizer
