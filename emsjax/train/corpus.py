"""Prompts for the target to write about: JSON lines, or plain text to go on with."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from emsjax.errors import UserError
from emsjax.loading.load import LoadedModel
from emsjax.requests import jsonl

# Of a plain text the target reads so many tokens of each passage and goes on from there.
PASSAGE_TOKENS = 48


def read_prompts(files: Sequence[Path], target: LoadedModel, longest: int) -> list[list[int]]:
    """Token ids of all prompts, those longer than `longest` left out.

    A `.jsonl` file has one object a line with `prompt`, `messages`, `prompt_token_ids` or `text`;
    any other file is plain text with an empty line between passages.

    Raises:
      UserError: a file cannot be read, or holds no prompt.
    """
    prompts = [ids for file in files for ids in _of_file(file, target)]
    model: Any = target.model
    longest = min(longest, model.max_positions - 1)
    kept = [ids for ids in prompts if 0 < len(ids) <= longest]
    if not kept:
        names = ", ".join(map(str, files))
        raise UserError(f"there is no prompt of at most {longest} tokens in {names}")
    return kept


def _of_file(file: Path, target: LoadedModel) -> Iterator[list[int]]:
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {str(file)!r} ({error})") from error
    if file.suffix == ".jsonl":
        # Not of the text, which has more ends of lines than JSON lines have.
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
            f"{where} is no prompt ({error}): it needs 'prompt', 'messages', 'prompt_token_ids' or "
            "'text'"
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
    """Token ids, if they are that."""
    model: Any = target.model
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise TypeError("'prompt_token_ids' must be a list of whole numbers")
    if any(not 0 <= token < model.vocab_size for token in ids):
        raise ValueError(f"the tokens go from 0 to {model.vocab_size - 1}")
    return ids


def _tokens(text: Any, target: LoadedModel) -> list[int]:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    if target.tokenizer is None:
        raise TypeError("the target has no tokenizer")
    return list(target.tokenizer(text)["input_ids"])
