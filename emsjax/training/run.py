"""Training a draft from end to end: the target writes, the draft learns, the result is kept."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.config import read_json
from emsjax.loading.draft import share
from emsjax.loading.draft_checkpoint import DraftManifest, probe, save_draft
from emsjax.loading.load import LoadedModel, load_model
from emsjax.models.recurrent_draft import RecurrentConfig
from emsjax.training.batches import frequent_tokens, is_held_out
from emsjax.training.corpus import read_prompts
from emsjax.training.curves import draw_curves
from emsjax.training.fit import Fitting, Progress, fit
from emsjax.training.record import Text, Writing, read_texts, record
from emsjax.whole_files import replace_text

TEXTS, CHECKPOINTS, LOG, CURVES, DRAFT, SETTINGS = (
    "texts",
    "checkpoints",
    "log.jsonl",
    "curves.png",
    "draft",
    "settings.json",
)


@dataclass(frozen=True)
class Training:
    """All settings of a training.

    Attributes:
      model: the target, as for `load_model`.
      inputs: files with prompts.
      output: directory for everything that is written.
      dtype: of the target.
      longest_prompt: longer prompts are left out, in tokens.
      writing: how the target writes.
      layers: feed-forward layers of the draft.
      width: of each of them; None for as wide as the target's.
      vocabulary: tokens the draft can guess, the most frequent ones.
      held_out: share of the prompts whose texts are for evaluation only.
      fitting: how the draft learns.
    """

    model: str | None
    inputs: tuple[Path, ...]
    output: Path
    dtype: str = "auto"
    longest_prompt: int = 512
    writing: Writing = field(default_factory=Writing)
    layers: int = 2
    width: int | None = None
    vocabulary: int = 8192
    held_out: float = 0.05
    fitting: Fitting = field(default_factory=Fitting)


def train(
    training: Training,
    on_text: Callable[[int, int], None] = lambda _done, _all: None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> Path:
    """Trains a draft; a run that was cut short goes on where it was.

    Args:
      training: settings; those of the run that is gone on with, if there is one.
      on_text: called with the texts written and those there are to be.
      on_progress: called at each evaluation.

    Returns:
      The directory of the draft, for `--draft-model`.

    Raises:
      UserError: the inputs cannot be read, or the output holds a run with other settings.
    """
    before = _settings_before(training)
    target = load_model(training.model, dtype=training.dtype)
    prompts = read_prompts(training.inputs, target, training.longest_prompt)
    _settle(training, prompts, before)
    texts = _texts(training, target, prompts, on_text)
    kept = [is_held_out(prompts[text.prompt], training.held_out) for text in texts]
    learn = [text for text, held in zip(texts, kept, strict=True) if not held]
    # One text of each prompt, or prompts with many would count for more.
    held_out = [t for t, held in zip(texts, kept, strict=True) if held and t.output == 0]
    if not learn or not held_out:
        raise UserError(
            f"{len(prompts)} prompts are too few to hold some out for evaluation: give more"
        )
    model: Any = target.model
    token_ids = frequent_tokens(learn, model.vocab_size, min(training.vocabulary, model.vocab_size))
    config = RecurrentConfig(
        model.embedder.tokens.shape[1],
        training.width or model.config.intermediate_size,
        training.layers,
    )
    log = _Log(training.output, on_progress)
    draft = fit(
        config,
        share(target, token_ids),
        learn,
        held_out,
        training.fitting,
        training.output / CHECKPOINTS,
        log.add,
    )
    directory = training.output / DRAFT
    save_draft(directory, draft, token_ids, _manifest(training, target, config, learn, log))
    return directory


def _settings_before(training: Training) -> dict[str, Any] | None:
    """Those of the run to go on with, if they are the same; None where a new one begins."""
    file = training.output / SETTINGS
    if not file.is_file():
        return None
    before = read_json(file, "delete it, and run again")
    for name, value in _as_json(training).items():
        if value != before.get(name) and name != "output":
            raise UserError(
                f"{training.output} holds a training with {name} {before.get(name)}, not "
                f"{value}: give the same settings to go on with it, or another --output"
            )
    return before


def _settle(
    training: Training, prompts: Sequence[Sequence[int]], before: dict[str, Any] | None
) -> None:
    """Writes the settings down, now that model and prompts are known to be good."""
    digest = hashlib.sha256(repr([list(prompt) for prompt in prompts]).encode()).hexdigest()[:16]
    if before is None:
        try:
            training.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {training.output} ({error.strerror})") from error
        content = json.dumps(_as_json(training) | {"prompts": digest}, indent=1)
        replace_text(training.output / SETTINGS, content + "\n")
    elif before.get("prompts") != digest:
        raise UserError(
            f"{training.output} holds a training with other prompts than those of "
            f"{', '.join(map(str, training.inputs))} today: give another --output"
        )


def _as_json(training: Training) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(training), default=str)))


def _texts(
    training: Training,
    target: LoadedModel,
    prompts: Sequence[Sequence[int]],
    on_text: Callable[[int, int], None],
) -> list[Text]:
    directory = training.output / TEXTS
    wanted = len(prompts) * training.writing.outputs
    done = sum(1 for _ in read_texts(directory))

    def count(_text: Text) -> None:
        nonlocal done
        done += 1
        on_text(done, wanted)

    record(target, prompts, directory, training.writing, count)
    # In an order that does not depend on where the run was cut short.
    return sorted(read_texts(directory), key=lambda text: (text.prompt, text.output))


class _Log:
    """The curve so far, in a file of JSON lines and in a picture."""

    def __init__(self, directory: Path, on_progress: Callable[[Progress], None]):
        self._directory, self._on_progress = directory, on_progress
        file = directory / LOG
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        try:
            self.progress = [Progress(**json.loads(line)) for line in lines]
        except (ValueError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}): delete it, and run again") from error

    def add(self, progress: Progress) -> None:
        # What was done again after a kill replaces what is there.
        self.progress = [each for each in self.progress if each.step < progress.step]
        self.progress.append(progress)
        lines = [json.dumps(each._asdict()) + "\n" for each in self.progress]
        replace_text(self._directory / LOG, "".join(lines))
        draw_curves(self.progress, self._directory / CURVES)
        self._on_progress(progress)


def _manifest(
    training: Training,
    target: LoadedModel,
    config: RecurrentConfig,
    learn: Sequence[Text],
    log: _Log,
) -> DraftManifest:
    model: Any = target.model
    names = ", ".join(file.name for file in training.inputs)
    accepted = [round(value, 3) for each in log.progress[-1:] for value in each.accepted]
    return DraftManifest(
        target=target.name,
        probe=probe(model.embedder.tokens[...]),
        sizes=asdict(config),
        trained_on=(
            f"{sum(len(text.tokens) for text in learn)} tokens that {target.name} wrote in answer "
            f"to prompts from {names}"
        ),
        evaluation={"accepted_tokens_by_draft_length": accepted, "held_out": training.held_out},
    )
