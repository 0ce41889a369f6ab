"""A tiny model with a tokenizer that makes each word one token."""

import pytest

from tests.tiny import chat_checkpoint


@pytest.fixture(scope="package")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    return str(chat_checkpoint("llama", tmp_path_factory.mktemp("with-tokenizer") / "model"))
