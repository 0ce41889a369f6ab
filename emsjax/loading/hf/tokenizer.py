"""Loads the tokenizers of model directories, from local files only, and calls them.

Tokenizers and chat templates belong to the model. Whatever they raise becomes a `UserError`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emsjax.errors import UserError, foreign, reason
from emsjax.loading.hf.config import read_json
from emsjax.loading.hf.defaults import type_of_transformers
from emsjax.loading.hf.unadvised import without_advice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_OTHER_TEXT = "change it, or give token ids."


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
        options = {"local_files_only": True, "trust_remote_code": False}
        return AutoTokenizer.from_pretrained(directory, **options, **_known_config(directory))


def _known_config(directory: Path) -> dict[str, Any]:
    """Returns a configuration of a type that `transformers` knows, if it does not know the model's.

    Otherwise it would warn that they differ.
    """
    file = directory / "config.json"
    model_type = str(read_json(file).get("model_type")) if file.is_file() else ""
    known = type_of_transformers(model_type)
    if known == model_type:
        return {}
    from transformers import CONFIG_MAPPING

    return {"config": CONFIG_MAPPING[known]()}


def _check_code(directory: Path) -> None:
    """Refuses a tokenizer that comes with code of its own."""
    file = directory / "tokenizer_config.json"
    if file.is_file() and read_json(file).get("auto_map"):
        raise UserError(
            f"{file} names code of its own (auto_map), which emsjax does not run; pass another "
            "tokenizer with --tokenizer."
        )


def encode(
    tokenizer: "PreTrainedTokenizerBase", text: str, name: str, *, special: bool = True
) -> tuple[int, ...]:
    """Returns the token ids of a text.

    Args:
      tokenizer: the model's tokenizer.
      text: the text.
      name: the model's name for messages.
      special: whether the tokenizer adds its special tokens, such as the begin of text.

    Raises:
      UserError: the tokenizer fails.
    """
    with foreign(f"the tokenizer of {name} does not take this prompt", _OTHER_TEXT):
        return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])


def decode(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int], **options: bool) -> str:
    """Returns the text of tokens; `options` are those of the tokenizer's `decode`.

    Raises:
      UserError: the tokenizer fails.
    """
    with foreign("the tokenizer cannot turn tokens into text", "name another tokenizer."):
        return str(tokenizer.decode(tokens, **options))


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    name: str,
    *,
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    arguments: Callable[[str], Mapping[str, Any]] | None = None,
) -> str:
    """Returns a conversation as text in a chat template.

    Args:
      tokenizer: the model's tokenizer.
      messages: mappings with `role` and `content`.
      name: the model's name for messages.
      template: the template; None for the model's.
      tools: functions that the model may call.
      arguments: takes the template's text and returns further arguments for the tokenizer; by
        default the text ends where the model's reply begins.

    Raises:
      UserError: the model has no chat template, or the template fails.
    """
    if not tokenizer.chat_template and template is None:
        raise UserError(f"{name} has no chat template; give a plain prompt")
    problem = f"the chat template of {name} does not take these messages"
    remedy = "change them or give a plain prompt"
    try:
        with foreign(problem, remedy):
            chosen = tokenizer.get_chat_template(template, [dict(tool) for tool in tools] or None)
            given = {"add_generation_prompt": True} if arguments is None else arguments(chosen)
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **given))
    except MemoryError as error:  # of the template, which asked for too long a text
        raise UserError(f"{problem} ({reason(error)}); {remedy}") from error
