"""Loads the tokenizers of model directories, from local files only."""

from pathlib import Path
from typing import TYPE_CHECKING

from emsjax.errors import UserError
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
    try:
        if (directory / "emsjax.json").is_file():  # our own checkpoint: the class is known
            with without_advice():
                from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        with without_advice():
            from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises many types for damaged files
        raise UserError(
            f"the tokenizer files in {directory} cannot be read ({' '.join(str(error).split())}); "
            "download them again."
        ) from error
