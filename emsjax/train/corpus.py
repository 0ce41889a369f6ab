"""Reads prompts for the target: JSON lines, or plain text to continue."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emsjax.errors import UserError, reason
from emsjax.loading.hf.tokenizer import encode, render
from emsjax.loading.load import LoadedModel
from emsjax.requests.prompt_line import (
    PROMPT_KEYS,
    check_text,
    prompt_key,
    read_object,
    take_prompt,
)

# The target reads this many tokens of a passage of text and continues from there.
PASSAGE_TOKENS = 48


def read_prompts(files: Sequence[Path], target: LoadedModel, longest: int) -> list[list[int]]:
    """Returns the token ids of all prompts that are not too long.

    A `.jsonl` file has one object per line with one prompt (see `take_prompt`) or with `text`, a
    passage. Any other file is plain text, with an empty line between passages.

    Args:
      files: the files to read.
      target: the model whose tokenizer is used.
      longest: most tokens of a prompt; longer prompts are left out.

    Raises:
      UserError: a file cannot be read or has an invalid line, or no prompt is left.
    """
    prompts = [ids for file in files for ids in _of_file(file, target)]
    model = target.model
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
    except OSError as error:
        raise UserError(
            f"cannot read {str(file)!r} ({error.strerror}); name another file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{str(file)!r} is not UTF-8 text ({reason(error)}); convert it") from error
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
        return _of_object(read_object(line), target)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _of_object(fields: dict[str, Any], target: LoadedModel) -> list[int]:
    if prompt_key(fields, (*PROMPT_KEYS, "text")) == "text":
        return _tokens(check_text("text", fields["text"]), target)[:PASSAGE_TOKENS]
    prompt: Any = take_prompt(fields)
    if isinstance(prompt, str):
        return _tokens(prompt, target)
    if prompt and isinstance(prompt[0], dict):
        return _rendered(prompt, target)
    return _checked(prompt, target)


def _checked(ids: list[int], target: LoadedModel) -> list[int]:
    """The token ids, if the vocabulary has them all."""
    model = target.model
    for token in ids:
        if not 0 <= token < model.vocab_size:
            raise UserError(
                f"token id {token} is outside the vocabulary; give ids from 0 to "
                f"{model.vocab_size - 1}."
            )
    return ids


def _rendered(messages: list[dict[str, Any]], target: LoadedModel) -> list[int]:
    """The token ids of a conversation in the target's chat template."""
    tokenizer = _tokenizer(target)
    # A chat template writes the special tokens itself.
    text = render(tokenizer, messages, target.name)
    return list(encode(tokenizer, text, target.name, special=False))


def _tokens(text: str, target: LoadedModel) -> list[int]:
    return list(encode(_tokenizer(target), text, target.name))


def _tokenizer(target: LoadedModel) -> Any:
    if target.tokenizer is None:
        raise UserError("the target has no tokenizer; give prompts as prompt_token_ids.")
    return target.tokenizer
