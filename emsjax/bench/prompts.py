"""The prompts of a benchmark, by dataset: from files of JSON lines, or made up."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emsjax.errors import UserError
from emsjax.requests.prompt_line import read_object, take_prompt

Tokens = tuple[int, ...]
# Spec-Bench's own grouping: every other category is one of its multi-turn conversations.
SPEC_BENCH = ("summarization", "rag", "qa", "math_reasoning", "translation")
CONVERSATION = "mt_bench"


def read_datasets(files: Iterable[Path], wanted: Sequence[str]) -> dict[str, list[Any]]:
    """Reads prompts in the forms that `LLM.generate` accepts, by dataset.

    A line is an object with one prompt (see `take_prompt`). Its `category` names its dataset; a
    line without one belongs to the dataset named after the file.

    Args:
      files: JSON lines.
      wanted: names of datasets; all datasets if empty.

    Raises:
      UserError: a file cannot be read, a line is not valid, or a wanted dataset is missing.
    """
    found: dict[str, list[Any]] = defaultdict(list)
    for file in files:
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                dataset, prompt = _read(line, file, number)
                found[dataset].append(prompt)
    if not found:
        raise UserError("the input has no prompts; name a file that has one on each line")
    for name in wanted:
        if name not in found:
            raise UserError(
                f"the input has no prompts of {name!r}; name one or more of {', '.join(found)}"
            )
    return {name: found[name] for name in wanted or found}


def _lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"input {str(file)!r} cannot be read ({error.strerror}); name a readable file"
        ) from error


def _read(line: bytes, file: Path, number: int) -> tuple[str, Any]:
    try:
        fields = read_object(line)
        from_spec_bench = "turns" in fields and "category" in fields
        prompt = take_prompt(fields)
    except UserError as error:
        raise UserError(f"{file}, line {number}: {error}") from error
    category = str(fields.get("category", file.stem))
    grouped = from_spec_bench and category not in SPEC_BENCH
    return CONVERSATION if grouped else category, prompt


def take_evenly(prompts: Sequence[Any], least: int, batch_size: int) -> list[Any]:
    """Selects prompts at even distances from a dataset, in full batches.

    Returns the fewest full batches that hold `least` prompts, or all full batches if the dataset is
    smaller. If it cannot fill one batch, some prompts appear more than once.
    """
    count, there = -(-least // batch_size) * batch_size, len(prompts)
    if count > there:
        count = max(there // batch_size, 1) * batch_size
    return [prompts[n * there // count] for n in range(count)]


class Dataset(Protocol):
    """A source of prompts. Equal arguments of `take` return equal prompts."""

    def take(self, least: int, batch_size: int) -> list[Tokens]:
        """Returns the fewest full batches that hold `least` prompts, see `take_evenly`."""
        ...


@dataclass(frozen=True)
class GivenPrompts:
    """The prompts of a file, taken evenly and tokenised when they are taken.

    Attributes:
      prompts: in a form that `read` accepts.
      read: returns a prompt's token ids.
      chat: whether text prompts go into the chat template.
    """

    prompts: Sequence[Any]
    read: Callable[[Any], Sequence[int]]
    chat: bool
    _known: dict[int, Tokens] = field(default_factory=dict)

    def take(self, least: int, batch_size: int) -> list[Tokens]:
        """See `take_evenly`."""
        return [self._tokens(n) for n in take_evenly(range(len(self.prompts)), least, batch_size)]

    def _tokens(self, number: int) -> Tokens:
        if number not in self._known:
            prompt = self.prompts[number]
            if self.chat and isinstance(prompt, str):
                prompt = [{"role": "user", "content": prompt}]
            self._known[number] = tuple(self.read(prompt))
        return self._known[number]


@dataclass(frozen=True)
class MadeUpPrompts:
    """Random prompts, in any number.

    Attributes:
      length: tokens of each prompt.
      vocab_size: V.
    """

    length: int
    vocab_size: int

    def take(self, least: int, batch_size: int) -> list[Tokens]:
        """Returns the prompts of the simulated samples 0, 1, 2 and so on."""
        return made_up(-(-least // batch_size) * batch_size, self.length, self.vocab_size)


def made_up(count: int, length: int, vocab_size: int) -> list[Tokens]:
    """Returns random prompts. Each begins with its number, which tells simulated texts apart."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (count, length))
    tokens[:, 0] = np.arange(count) % vocab_size
    return [tuple(row) for row in tokens.tolist()]
