"""Lets the target make up prompts, for training without a prompt file.

An instruction model has learnt what users ask. Given its chat template up to the point where a
user's message begins, it continues with such a message (Magpie, arXiv 2406.08464).
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.host.files import replace_text
from emsjax.host.json_text import to_json
from emsjax.loading.hf.tokenizer import decode, encode, render
from emsjax.loading.load import LoadedModel
from emsjax.train.record import Text, Writing, write_texts

MAX_TOKENS, TEMPERATURE = 128, 0.9
# Placeholder that marks where the template puts a message.
_MESSAGE = "emsjax-user-message"


def write_own_prompts(
    target: LoadedModel,
    start: Sequence[int],
    file: Path,
    count: int,
    writing: Writing,
    on_text: Callable[[int, int], None],
) -> None:
    """Writes up to `count` user messages as JSON lines, without duplicates.

    Messages that are empty, or that do not end within `MAX_TOKENS` tokens, are dropped.

    Args:
      target: the model that makes up the messages.
      start: token ids before a user's message, see `start_of_message`.
      file: output file; left unchanged if it exists. Until the file is complete, texts are kept
        in a directory of the same name without suffix, from which an interrupted run continues.
      count: number of messages to start: one greedy, the others sampled.
      writing: its `batch_size` applies here; the other fields do not.
      on_text: called with (messages written, messages to write).

    Raises:
      UserError: the target ended no message.
    """
    begun = file.with_suffix("")
    if file.exists():
        # A run may have been killed between writing the file and removing the directory.
        shutil.rmtree(begun, ignore_errors=True)
        return
    how = replace(
        writing, outputs=count, max_tokens=MAX_TOKENS, temperature=TEMPERATURE, ignore_eos=False
    )
    texts = write_texts(target, [start], begun, how, on_text)
    messages = [_message(target, text) for text in texts]
    kept = [message for message in dict.fromkeys(messages) if message]
    if not kept:
        raise UserError(
            f"{target.name} did not finish any of {count} user messages; give prompts with --input"
        )
    lines = (to_json({"messages": [{"role": "user", "content": each}]}) + "\n" for each in kept)
    replace_text(file, "".join(lines))
    shutil.rmtree(begun)


def start_of_message(target: LoadedModel) -> list[int]:
    """Returns the token ids of a chat up to where its first user message begins.

    Raises:
      UserError: the target has no chat template, or the template has nothing before the message.
    """
    tokenizer: Any = target.tokenizer
    if tokenizer is None or not tokenizer.chat_template:
        raise UserError(
            f"{target.name} has no chat template, so it cannot make up prompts; give prompts with "
            "--input"
        )
    chat = [{"role": "user", "content": _MESSAGE}]
    rendered = render(
        tokenizer, chat, target.name, arguments=lambda _: {"add_generation_prompt": False}
    )
    before, _, _ = rendered.partition(_MESSAGE)
    ids = list(encode(tokenizer, before, target.name, special=False))
    if not ids:
        raise UserError(
            f"{target.name} cannot make up prompts, because its chat template has nothing before a "
            "user's message; give prompts with --input"
        )
    return ids


def _message(target: LoadedModel, text: Text) -> str:
    """Returns the user message in a text; empty if the message did not end."""
    *tokens, last = text.tokens.tolist()
    tokenizer: Any = target.tokenizer
    return decode(tokenizer, tokens).strip() if last in target.eos_token_ids else ""
