"""A tiny model with a tokenizer of one word a token."""

import shutil

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny import VOCAB_SIZE, checkpoint

TEMPLATE = "{% for m in messages %}w5 {{ m['content'] }} {% endfor %}w6"


def words() -> PreTrainedTokenizerFast:
    """One word a token: w0 to w100."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="w2", unk_token="w0")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="package")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    directory = tmp_path_factory.mktemp("with-tokenizer") / "model"
    shutil.copytree(checkpoint("llama"), directory)
    words().save_pretrained(directory)
    return str(directory)
