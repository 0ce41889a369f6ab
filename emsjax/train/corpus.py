"""Reads prompts for the target: JSON lines, or plain text to continue."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from emsjax.errors import UserError
from emsjax.loading.load import LoadedModel
from emsjax.requests import jsonl

# The target reads this many tokens of a passage of text and continues from there.
PASSAGE_TOKENS = 48


def read_prompts(files: Sequence[Path], target: LoadedModel, longest: int) -> list[list[int]]:
    """Returns the token ids of all prompts that are not too long.

    A `.jsonl` file has one object per line, with `prompt`, `messages`, `prompt_token_ids` or
    `text`. Any other file is plain text, with an empty line between passages.

    Args:
      files: the files to read.
      target: the model whose tokenizer is used.
      longest: most tokens of a prompt; longer prompts are left out.

    Raises:
      UserError: a file cannot be read or has an invalid line, or no prompt is left.
    """
    prompts = [ids for file in files for ids in _of_file(file, target)]
    model: Any = target.model
    longest = min(longest, model.max_positions - 1)
    kept = [ids for ids in prompts if 0 < len(ids) <= longest]
    if not kept:
        names = ", ".join(map(str, files))
        raise UserError(
            f"no prompt in {names} has between 1 and {longest} tokens; add shorter prompts"
        )
    return kept


def _of_file(file: Path, target: LoadedModel) -> Iterator[list[int]]:
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {str(file)!r} ({error})") from error
    if file.suffix == ".jsonl":
        # Split bytes, not text: `str.splitlines` also splits at characters that JSON strings may
        # contain, such as U+2028.
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                yield _of_line(line, f"{file}, line {number}", target)
        return
    for passage in "\n".join(text.splitlines()).split("\n\n"):
        if passage.strip():
            yield _tokens(passage.strip(), target)[:PASSAGE_TOKENS]


def _of_line(line: bytes, where: str, target: LoadedModel) -> list[int]:
    try:
        return _of_object(jsonl.parse(line), target)
    except (ValueError, TypeError, KeyError, TemplateError) as error:
        raise UserError(
            f"{where} is not a valid prompt ({error}); it must have 'prompt', 'messages', "
            "'prompt_token_ids' or 'text'"
        ) from error


def _of_object(content: dict[str, Any], target: LoadedModel) -> list[int]:
    if "prompt_token_ids" in content:
        return _checked(content["prompt_token_ids"], target)
    if "messages" in content:
        if target.tokenizer is None:
            raise TypeError("the target has no tokenizer")
        messages = content["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise TypeError("'messages' must be a list of objects")
        encoded = target.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return list(encoded["input_ids"])
    if "text" in content:
        return _tokens(content["text"], target)[:PASSAGE_TOKENS]
    return _tokens(content["prompt"], target)


def _checked(ids: Any, target: LoadedModel) -> list[int]:
    """Checks that `ids` is a list of token ids of the target and returns it."""
    model: Any = target.model
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise TypeError("'prompt_token_ids' must be a list of whole numbers")
    if any(not 0 <= token < model.vocab_size for token in ids):
        raise ValueError(f"token ids must be between 0 and {model.vocab_size - 1}")
    return ids


def _tokens(text: Any, target: LoadedModel) -> list[int]:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is not a string")
    if target.tokenizer is None:
        raise TypeError("the target has no tokenizer")
    return list(target.tokenizer(text)["input_ids"])
