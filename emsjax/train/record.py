"""Lets the target write texts, and stores them with the hidden state that led to each token.

Each file holds `TEXTS_PER_FILE` texts, so that an interrupted run continues where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emsjax.build_engine import choose_ladder
from emsjax.engine.engine import Engine
from emsjax.engine.job import NOT_NUMBERS, Finished, Job
from emsjax.engine.ladder import CAPACITY_MULTIPLE
from emsjax.engine.state import DecodeState
from emsjax.errors import UserError, foreign
from emsjax.host.files import replacing
from emsjax.loading.load import LoadedModel
from emsjax.sampling.choice import GREEDY, Choice, make_choice
from emsjax.shapes import round_up
from emsjax.train.recorder import Recorder

TEXTS_PER_FILE = 192


@dataclass(frozen=True)
class Writing:
    """How the target writes.

    Attributes:
      outputs: texts per prompt: one greedy, the others sampled. The prompt is read once for all.
      max_tokens: most tokens per text.
      temperature: sampling temperature.
      batch_size: texts written at a time.
      ignore_eos: whether to continue after end-of-text tokens.
    """

    outputs: int = 3
    max_tokens: int = 160
    temperature: float = 0.6
    batch_size: int = 48
    ignore_eos: bool = False


class Text(NamedTuple):
    """A text of W tokens that the target wrote for a prompt.

    Attributes:
      prompt: number of the prompt.
      output: number of the text among the prompt's texts; 0 is the greedy one.
      tokens: int32[W].
      hidden: float16[W - 1, D], the hidden state from which each token was chosen; the last
        token's is not known.
    """

    prompt: int
    output: int
    tokens: np.ndarray
    hidden: np.ndarray


def record(
    target: LoadedModel,
    prompts: Sequence[Sequence[int]],
    directory: Path,
    writing: Writing,
    on_text: Callable[[Text], None] = lambda _text: None,
) -> None:
    """Writes the texts that `directory` does not have yet.

    Args:
      target: the model that writes.
      prompts: token ids of each prompt.
      directory: directory of the files; created if missing.
      writing: how to write.
      on_text: called with each text when it is finished.

    Raises:
      UserError: a file in `directory` is damaged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Numbers ascend over the whole run, so that a new file never replaces an old one.
    number = max((int(file.stem) for file in directory.glob("*.npz")), default=-1) + 1
    done = {(text.prompt, text.output) for text in read_texts(directory)}
    waiting: list[Text] = []
    for text in _write(target, prompts, writing, done):
        on_text(text)
        waiting.append(text)
        if len(waiting) == TEXTS_PER_FILE:
            _save(directory / f"{number:06d}.npz", waiting)
            number, waiting = number + 1, []
    if waiting:
        _save(directory / f"{number:06d}.npz", waiting)


def write_texts(
    target: LoadedModel,
    prompts: Sequence[Sequence[int]],
    directory: Path,
    writing: Writing,
    on_text: Callable[[int, int], None],
) -> list[Text]:
    """Writes the missing texts, see `record`, and reads all of them.

    Args:
      target: the model that writes.
      prompts: token ids of each prompt.
      directory: directory of the files; created if missing.
      writing: how to write.
      on_text: called with (texts written, including earlier runs; texts to write).

    Returns:
      The texts of more than one token, in an order that does not depend on interruptions.

    Raises:
      UserError: a file in `directory` is damaged.
    """
    done, wanted = sum(1 for _ in read_texts(directory)), len(prompts) * writing.outputs

    def count(_text: Text) -> None:
        nonlocal done
        done += 1
        on_text(done, wanted)

    record(target, prompts, directory, writing, count)
    texts = (text for text in read_texts(directory) if len(text.tokens) > 1)
    return sorted(texts, key=lambda text: (text.prompt, text.output))


def read_texts(directory: Path) -> Iterator[Text]:
    """Yields all texts in a directory.

    Raises:
      UserError: a file is damaged.
    """
    for file in sorted(directory.glob("*.npz")):
        yield from _read(file)


def _read(file: Path) -> list[Text]:
    damaged = foreign(f"{file} is damaged", "delete it and run again")
    with damaged, file.open("rb") as stream, np.load(stream) as content:
        ends = np.cumsum(content["lens"])
        tokens = np.split(content["tokens"], ends[:-1])
        # Each text has one hidden state fewer than it has tokens.
        hidden = np.split(content["hidden"], (ends - np.arange(1, len(ends) + 1))[:-1])
        return list(map(Text, content["prompts"], content["outputs"], tokens, hidden))


def _save(file: Path, texts: list[Text]) -> None:
    with replacing(file) as stream:
        np.savez(
            stream,
            prompts=np.asarray([text.prompt for text in texts], np.int32),
            outputs=np.asarray([text.output for text in texts], np.int32),
            lens=np.asarray([len(text.tokens) for text in texts], np.int32),
            tokens=np.concatenate([text.tokens for text in texts]),
            hidden=np.concatenate([text.hidden for text in texts]),
        )


def _write(
    target: LoadedModel,
    prompts: Sequence[Sequence[int]],
    writing: Writing,
    done: set[tuple[int, int]],
) -> Iterator[Text]:
    """Yields the texts that are not in `done`, as the target finishes them."""
    model = target.model
    longest = max(map(len, prompts), default=0) + writing.max_tokens
    engine = _Watched(
        model,
        Recorder(model.embedding_kernel.shape[1]),
        choose_ladder(writing.batch_size, 0, exact=False),
        num_slots=writing.batch_size,
        capacity=round_up(min(longest, model.max_positions), CAPACITY_MULTIPLE),
    )
    for finished in engine.run(_jobs(target, prompts, writing, done)):
        if finished is not None:
            if finished.failed:
                raise UserError(f"{NOT_NUMBERS}; check its weights before training a draft for it")
            yield _text(engine.latest, finished)


def _jobs(
    target: LoadedModel,
    prompts: Sequence[Sequence[int]],
    writing: Writing,
    done: set[tuple[int, int]],
) -> Iterator[Job]:
    """Yields a job for each text that is not in `done`."""
    model = target.model
    stop_ids = () if writing.ignore_eos else target.eos_token_ids
    for number, prompt in enumerate(prompts):
        group = object()  # lets the engine read the prompt once for all its texts
        for output in range(writing.outputs):
            if (number, output) not in done:
                choice = _choice(writing, number, output)
                room = model.max_positions - len(prompt)
                longest = min(writing.max_tokens, room)
                yield Job((number, output), prompt, longest, stop_ids, choice, group)


def _choice(writing: Writing, number: int, output: int) -> Choice:
    """Returns how a text's tokens are chosen, with a seed that is the same in every run."""
    if output == 0:
        return GREEDY
    return make_choice(temperature=writing.temperature, seed=number * writing.outputs + output)


class _Watched(Engine):
    """An engine that keeps its latest state for inspection."""

    latest: DecodeState

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """Runs `Engine.advance` and keeps the state."""
        self.latest = super().advance(state, max_steps, others_wait)
        return self.latest


def _text(state: DecodeState, finished: Finished) -> Text:
    """Returns a finished job's text, with the hidden states from its slot."""
    key: Any = finished.job.key
    whole = np.asarray([*finished.job.prompt, *finished.token_ids], np.int32)
    # A finished job does not name its slot. Any slot with the same tokens will do, because it has
    # the same hidden states.
    same = (np.asarray(state.tokens)[:, : len(whole)] == whole).all(axis=1)
    slot = int(np.flatnonzero(same)[0])
    # Whole rows leave the device: jax would compile a slice for every length.
    hidden = np.asarray(state.drafter[slot])[len(finished.job.prompt) : len(whole) - 1]
    tokens = np.asarray(finished.token_ids, np.int32)
    return Text(key[0], key[1], tokens, hidden.astype(np.float16))
