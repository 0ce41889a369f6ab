"""A tiny model with a tokenizer of one word a token."""

import shutil

import pytest

from tests.tiny import checkpoint, words


@pytest.fixture(scope="package")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    directory = tmp_path_factory.mktemp("with-tokenizer") / "model"
    shutil.copytree(checkpoint("llama"), directory)
    words().save_pretrained(directory)
    return str(directory)
