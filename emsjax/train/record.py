"""Lets the target write, and keeps what it wrote with the hidden states behind each token.

In files of some hundred texts each, so that a killed run goes on where it was.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emsjax.build_engine import CAPACITY_MULTIPLE, choose_ladder
from emsjax.engine.engine import Engine
from emsjax.engine.job import Finished, Job
from emsjax.engine.state import DecodeState
from emsjax.errors import UserError
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
      outputs: texts for each prompt, which is read once for all of them: one greedy, the others
        sampled.
      max_tokens: of each.
      temperature: of the sampled ones.
      batch_size: texts written together.
      ignore_eos: whether to write on past the end of text.
    """

    outputs: int = 3
    max_tokens: int = 160
    temperature: float = 0.6
    batch_size: int = 48
    ignore_eos: bool = False


class Text(NamedTuple):
    """What the target wrote for a prompt.

    Attributes:
      prompt: number of the prompt.
      output: number of the text among those of the prompt; 0 is the greedy one.
      tokens: int32[W].
      hidden: float16[W - 1, D], what each token was chosen from; the last one's is not known.
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
    """Writes texts for all prompts that have none in `directory` yet.

    Args:
      target: writes.
      prompts: token ids.
      directory: for the files; made if need be.
      writing: how.
      on_text: called with each text as it is finished.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Numbers are ascending over the run: a new file never takes the name of an old one.
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
    """Writes what is missing, see `record`, and reads all.

    Args:
      target: writes.
      prompts: token ids.
      directory: for the files.
      writing: how.
      on_text: called with the texts written, earlier ones too, and those there are to be.

    Returns:
      Those of more than one token, in an order that does not depend on where a run was cut short.
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
    """All texts that were written into a directory.

    Raises:
      UserError: a file is damaged.
    """
    for file in sorted(directory.glob("*.npz")):
        yield from _read(file)


def _read(file: Path) -> list[Text]:
    try:
        with file.open("rb") as stream, np.load(stream) as content:
            ends = np.cumsum(content["lens"])
            tokens = np.split(content["tokens"], ends[:-1])
            hidden = np.split(content["hidden"], (ends - np.arange(1, len(ends) + 1))[:-1])
            return list(map(Text, content["prompts"], content["outputs"], tokens, hidden))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged ({error}): delete it, and run again") from error


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
            yield _text(engine.latest, finished)


def _jobs(
    target: LoadedModel,
    prompts: Sequence[Sequence[int]],
    writing: Writing,
    done: set[tuple[int, int]],
) -> Iterator[Job]:
    model = target.model
    stop_ids = () if writing.ignore_eos else target.eos_token_ids
    for number, prompt in enumerate(prompts):
        group = object()
        for output in range(writing.outputs):
            if (number, output) not in done:
                choice = _choice(writing, number, output)
                room = model.max_positions - len(prompt)
                longest = min(writing.max_tokens, room)
                yield Job((number, output), prompt, longest, stop_ids, choice, group)


def _choice(writing: Writing, number: int, output: int) -> Choice:
    if output == 0:
        return GREEDY
    return make_choice(temperature=writing.temperature, seed=number * writing.outputs + output)


class _Watched(Engine):
    """An engine whose latest state can be looked at."""

    latest: DecodeState

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """As `Engine.advance`."""
        self.latest = super().advance(state, max_steps, others_wait)
        return self.latest


def _text(state: DecodeState, finished: Finished) -> Text:
    """A finished job's text, with its hidden states looked up in its slot."""
    key: Any = finished.job.key
    whole = np.asarray([*finished.job.prompt, *finished.token_ids], np.int32)
    # Any slot with the same tokens will do: it has the same hidden states.
    same = (np.asarray(state.tokens[:, : len(whole)]) == whole).all(axis=1)
    slot = int(np.flatnonzero(same)[0])
    hidden = state.drafter[slot, len(finished.job.prompt) : len(whole) - 1]
    tokens = np.asarray(finished.token_ids, np.int32)
    return Text(key[0], key[1], tokens, np.asarray(hidden, np.float16))
