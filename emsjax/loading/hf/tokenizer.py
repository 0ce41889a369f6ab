"""Loads the tokenizers of model directories, from local files only."""

from pathlib import Path
from typing import TYPE_CHECKING

from emsjax.errors import UserError
from emsjax.loading.hf.config import read_json
from emsjax.loading.hf.foreign import foreign
from emsjax.loading.hf.unadvised import without_advice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase | None":
    """Returns the tokenizer of a model directory, or None if it has no tokenizer files.

    Raises:
      UserError: the tokenizer files cannot be read.
    """
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    _check_code(directory)
    with foreign(f"the tokenizer files in {directory} cannot be read", "download them again"):
        if (directory / "emsjax.json").is_file():  # our own checkpoint: the class is known
            with without_advice():
                from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        with without_advice():
            from transformers import AutoTokenizer

        # Without `trust_remote_code`, transformers asks on the terminal whether to run code.
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )


def _check_code(directory: Path) -> None:
    """Refuses a tokenizer that comes with code of its own."""
    file = directory / "tokenizer_config.json"
    if file.is_file() and read_json(file).get("auto_map"):
        raise UserError(
            f"{file} names code of its own (auto_map), which emsjax does not run; pass another "
            "tokenizer with --tokenizer."
        )
