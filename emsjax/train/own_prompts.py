"""Prompts that the target makes up itself, where there are no others.

An instruction model knows what users ask: from where a user's message begins in its chat template
it goes on with one (Magpie, arXiv 2406.08464).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.host.files import replace_text
from emsjax.loading.load import LoadedModel
from emsjax.train.record import Text, Writing, write_texts

MAX_TOKENS, TEMPERATURE = 128, 0.9
# Stands in for the message, to find where in the template it begins.
_MESSAGE = "emsjax-user-message"


def write_own_prompts(
    target: LoadedModel,
    start: Sequence[int],
    file: Path,
    count: int,
    writing: Writing,
    on_text: Callable[[int, int], None],
) -> None:
    """Writes `count` messages, less what is no message or is there twice, as JSON lines.

    Args:
      target: makes them up.
      start: of its chats, see `start_of_message`.
      file: for them; left as it is if it is there. What is made on the way lies in a directory of
        its name, where a killed run goes on.
      count: messages that are begun: the likeliest one, and sampled ones.
      writing: says how many are written together.
      on_text: called with the messages begun, and those there are to be.

    Raises:
      UserError: the target never ends a message.
    """
    begun = file.with_suffix("")
    if file.exists():
        shutil.rmtree(begun, ignore_errors=True)
        return
    how = replace(
        writing, outputs=count, max_tokens=MAX_TOKENS, temperature=TEMPERATURE, ignore_eos=False
    )
    texts = write_texts(target, [start], begun, how, on_text)
    messages = [_message(target, text) for text in texts]
    kept = [message for message in dict.fromkeys(messages) if message]
    if not kept:
        raise UserError(f"{target.name} ended no user's message: give prompts with --input")
    lines = (json.dumps({"messages": [{"role": "user", "content": each}]}) + "\n" for each in kept)
    replace_text(file, "".join(lines))
    shutil.rmtree(begun)


def start_of_message(target: LoadedModel) -> list[int]:
    """Token ids of a chat up to where its first message begins.

    Raises:
      UserError: the target has no chat template, or nothing in it tells a user's message.
    """
    tokenizer: Any = target.tokenizer
    if tokenizer is None or not tokenizer.chat_template:
        raise UserError(
            f"{target.name} has no chat template, so it cannot make up prompts: give some with "
            "--input"
        )
    chat = [{"role": "user", "content": _MESSAGE}]
    before, _, _ = tokenizer.apply_chat_template(chat, tokenize=False).partition(_MESSAGE)
    ids = list(tokenizer(before, add_special_tokens=False)["input_ids"])
    if not ids:
        raise UserError(
            f"in the chat template of {target.name} nothing stands before a user's message, so it "
            "cannot make up prompts: give some with --input"
        )
    return ids


def _message(target: LoadedModel, text: Text) -> str:
    """What a user asks; empty where the message did not end."""
    *tokens, last = text.tokens.tolist()
    tokenizer: Any = target.tokenizer
    return tokenizer.decode(tokens).strip() if last in target.eos_token_ids else ""
