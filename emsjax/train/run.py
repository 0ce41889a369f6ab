"""Trains a draft from end to end: the target writes, the draft learns, the draft is saved."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from emsjax.errors import UserError, foreign
from emsjax.host.files import replace_text
from emsjax.host.json_text import to_json
from emsjax.host.locks import alone_in
from emsjax.host.memory_error import naming_memory
from emsjax.loading.draft_checkpoint import DraftManifest, probe, save_draft
from emsjax.loading.load import LoadedModel, load_model
from emsjax.train.batches import Split, frequent_tokens, is_held_out
from emsjax.train.corpus import read_prompts
from emsjax.train.curves import can_draw, draw_curves
from emsjax.train.fit import Progress, fit
from emsjax.train.kinds import Config, config_of, task_of
from emsjax.train.lesson import Lesson
from emsjax.train.own_prompts import start_of_message, write_own_prompts
from emsjax.train.record import Text, write_texts
from emsjax.train.settings import (
    DRAFT,
    OWN_PROMPTS,
    Training,
    settings_before,
    settle,
    write_settings,
)
from emsjax.train.start import check_start, read_start

# Files and directories of a run.
TEXTS, CHECKPOINTS = "texts", "checkpoints"
LOG, CURVES = "log.jsonl", "curves.png"


def train(
    training: Training,
    on_text: Callable[[int, int], None] = lambda _done, _all: None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> Path:
    """Trains a draft; an interrupted run continues where it stopped.

    Args:
      training: settings; if the output holds a run, they must be the same as that run's.
      on_text: called with (texts written, texts to write).
      on_progress: called after each evaluation.

    Returns:
      The directory of the draft, for `--draft-model`.

    Raises:
      UserError: the target, the inputs or the draft to start from cannot be read, a draft of this
        kind cannot be trained further, there are too few prompts, another process is training in
        the output, the output holds a run that is damaged or has other settings, prompts or another
        draft to start from, or the run would overwrite that draft.
    """
    check_start(training)
    refusal = f"another process is training in {training.output}; give another --output"
    with ExitStack() as held:
        try:
            held.enter_context(alone_in(training.output, refusal))
        except OSError as error:
            raise UserError(
                f"cannot write to {training.output} ({error.strerror}); give another --output"
            ) from error
        return _train(training, on_text, on_progress)


def _train(
    training: Training,
    on_text: Callable[[int, int], None],
    on_progress: Callable[[Progress], None],
) -> Path:
    before = settings_before(training)
    target = load_model(training.model, dtype=training.dtype)
    start = None if training.start_from is None else read_start(training.start_from, target)
    config = start.draft.config if start else config_of(training, target)
    prompts = _given_prompts(training, target)
    message = start_of_message(target) if training.own_prompts else []
    if before is None:
        write_settings(training, {})
    prompts += _own_prompts(training, target, message, on_text)
    held_prompts = [is_held_out(prompt, training.held_out) for prompt in prompts]
    _check_held_out(held_prompts)
    settle(training, prompts, start.digest() if start else None, before or {})
    texts = write_texts(target, prompts, training.output / TEXTS, training.writing, on_text)
    learn = [text for text in texts if not held_prompts[text.prompt]]
    # Only the greedy text of each prompt, so that every prompt has the same weight.
    held_out = [text for text in texts if held_prompts[text.prompt] and text.output == 0]
    if not learn or not held_out:
        raise UserError(
            f"{target.name} wrote no texts of two or more tokens to train or to evaluate on for "
            f"{len(prompts)} prompts; give other prompts"
        )
    model = target.model
    count = min(training.vocabulary, model.vocab_size)
    token_ids = start.token_ids if start else frequent_tokens(learn, model.vocab_size, count)
    log, split = _Log(training.output, on_progress), Split(learn, held_out)
    lesson = Lesson(target, token_ids, prompts, split, training.fitting)
    fewer = "give fewer --rows or a smaller --width or --vocabulary, and another --output"
    with naming_memory("in the training", fewer):
        task = task_of(config, lesson, start.draft if start else None)
        draft = fit(*task, training.fitting, training.output / CHECKPOINTS, log.add)
    directory = training.output / DRAFT
    manifest = _manifest(training, target, config, learn, log)
    if start:
        more = f". It went on from a draft that had learnt from: {start.trained_on}"
        manifest = replace(manifest, trained_on=manifest.trained_on + more)
    save_draft(directory, draft, token_ids, manifest)
    return directory


def _check_held_out(held_out: Sequence[bool]) -> None:
    """Checks that there are prompts to train on and prompts to evaluate on."""
    if all(held_out) or not any(held_out):
        raise UserError(
            f"there are too few prompts ({len(held_out)}) to train on some and hold out others for "
            "evaluation; give more prompts or another --held-out"
        )


def _given_prompts(training: Training, target: LoadedModel) -> list[list[int]]:
    """Returns the token ids of the prompts in files."""
    if training.inputs:
        return read_prompts(training.inputs, target, training.longest_prompt)
    if not training.own_prompts:
        raise UserError("there are no prompts to train on; give --input or --own-prompts")
    return []


def _own_prompts(
    training: Training,
    target: LoadedModel,
    start: Sequence[int],
    on_text: Callable[[int, int], None],
) -> list[list[int]]:
    """Returns the token ids of the prompts that the target makes up."""
    if not training.own_prompts:
        return []
    file = training.output / OWN_PROMPTS
    write_own_prompts(target, start, file, training.own_prompts, training.writing, on_text)
    return read_prompts([file], target, training.longest_prompt)


class _Log:
    """Logs evaluations to a file of JSON lines and a plot."""

    def __init__(self, directory: Path, on_progress: Callable[[Progress], None]):
        self._directory, self._on_progress = directory, on_progress
        file = directory / LOG
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        with foreign(f"{file} is damaged", "delete it and run again"):
            self.progress = [Progress(**json.loads(line)) for line in lines]

    def add(self, progress: Progress) -> None:
        """Logs an evaluation and passes it on."""
        # After an interruption, updates since the last checkpoint are repeated and logged again.
        self.progress = [each for each in self.progress if each.step < progress.step]
        self.progress.append(progress)
        lines = [to_json(each._asdict()) + "\n" for each in self.progress]
        replace_text(self._directory / LOG, "".join(lines))
        if can_draw():
            # The training is worth more than its plot.
            try:
                draw_curves(self.progress, self._directory / CURVES)
            except UserError as error:
                print(f"warning: {error}", file=sys.stderr)
        self._on_progress(progress)


def _manifest(
    training: Training,
    target: LoadedModel,
    config: Config,
    learn: Sequence[Text],
    log: _Log,
) -> DraftManifest:
    model = target.model
    sources = [file.name for file in training.inputs]
    sources += ["the model itself"] if training.own_prompts else []
    accepted = [round(value, 3) for each in log.progress[-1:] for value in each.accepted]
    return DraftManifest(
        target=target.name,
        probe=probe(model),
        sizes=asdict(config),
        trained_on=(
            f"{sum(len(text.tokens) for text in learn)} tokens that {target.name} wrote in answer "
            f"to prompts from {', '.join(sources)}"
        ),
        kind=training.kind,
        evaluation={"accepted_tokens_by_draft_length": accepted, "held_out": training.held_out},
    )
