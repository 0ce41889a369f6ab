"""The settings of a training run, which must stay the same when the run continues."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.host.files import replace_text
from emsjax.host.json_text import to_json
from emsjax.limits import RECURRENT
from emsjax.loading.hf.config import read_json
from emsjax.train.fit import Fitting
from emsjax.train.record import Writing

OWN_PROMPTS, SETTINGS, DRAFT = "own-prompts.jsonl", "settings.json", "draft"
# As a draft to start from, the one that the package ships.
SHIPPED = "shipped"


@dataclass(frozen=True)
class Training:
    """All settings of a training run.

    Attributes:
      model: the target, as for `load_model`.
      inputs: files with prompts.
      output: directory of the run.
      own_prompts: number of prompts that the target makes up, in addition to those in files.
      dtype: dtype of the target.
      longest_prompt: most tokens of a prompt; longer prompts are left out.
      writing: how the target writes.
      kind: of the draft, one of `DRAFT_KINDS`.
      start_from: directory of a recurrent draft to go on from, or "shipped" for the one that comes
        with the package; None for a new draft. It determines `layers`, `width` and `vocabulary`;
        the values here are ignored. The defaults of `Fitting` are for new drafts: to train
        one further, the command sets `one_ahead` to 0 and `learning_rate` to 5e-4.
      layers: feed-forward layers of a recurrent draft; how many of the target's last layers a draft
        of inner states runs. None for 2, for half of the target's with hidden transfer, and for the
        only one of a Jakiro head.
      width: width of the feed-forward layers; None for the width of the target's, or of its states
        for a Jakiro head. Hidden transfer has none.
      vocabulary: number of tokens that the draft can propose: the most frequent ones.
      held_out: share of prompts whose texts are for evaluation only, 0 to 1.
      fitting: how the draft is trained.
    """

    model: str | None
    inputs: tuple[Path, ...]
    output: Path
    own_prompts: int = 0
    dtype: str = "auto"
    longest_prompt: int = 512
    writing: Writing = field(default_factory=Writing)
    kind: str = RECURRENT
    start_from: str | None = None
    layers: int | None = 2
    width: int | None = None
    vocabulary: int = 8192
    held_out: float = 0.05
    fitting: Fitting = field(default_factory=Fitting)


def settings_before(training: Training) -> dict[str, Any] | None:
    """Reads the settings of the run in the output directory and compares them.

    Returns:
      The contents of its settings file, or None if there is no run yet.

    Raises:
      UserError: the settings differ, or the file is damaged.
    """
    file = training.output / SETTINGS
    if not file.is_file():
        return None
    # Runs had one kind before there were others.
    before = {"kind": RECURRENT} | read_json(file, "delete it and run again")
    for name, value in _as_json(training).items():
        # A run may be moved, or be named by another path.
        if value != before.get(name) and name != "output":
            raise UserError(
                f"{training.output} holds a run with {name} {before.get(name)}, not {value}; give "
                "the same settings to continue it, or another --output"
            )
    return before


def settle(
    training: Training,
    prompts: Sequence[Sequence[int]],
    start: str | None,
    before: dict[str, Any],
) -> None:
    """Records which prompts and draft the run uses, after checking that they have not changed.

    Args:
      training: the settings.
      prompts: token ids of each prompt.
      start: the digest of the draft to start from, if there is one.
      before: the result of `settings_before`; empty for a new run.

    Raises:
      UserError: the prompts or the draft differ from the run's, or the settings cannot be written.
    """
    digest = hashlib.sha256(repr([list(prompt) for prompt in prompts]).encode()).hexdigest()[:16]
    if before.get("prompts", digest) != digest:
        files = [*training.inputs, *([OWN_PROMPTS] if training.own_prompts else [])]
        raise UserError(
            f"{training.output} holds a run with other prompts than "
            f"{', '.join(map(str, files))} now contains; restore them, or give another --output"
        )
    # Checkpoints hold weights without the tokens that they propose, which are those of the draft.
    if before.get("start", start) != start:
        raise UserError(
            f"{training.output} went on from another draft than {training.start_from} now is; "
            "restore that one, or give another --output"
        )
    write_settings(training, {"prompts": digest, "start": start})


def write_settings(training: Training, more: dict[str, str | None]) -> None:
    """Writes the settings file; call it only after checking model and prompts.

    Args:
      training: the settings.
      more: further entries of the file.

    Raises:
      UserError: the file cannot be written.
    """
    content = to_json(_as_json(training) | more, indent=1)
    try:
        training.output.mkdir(parents=True, exist_ok=True)
        replace_text(training.output / SETTINGS, content + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write to {training.output} ({error.strerror}); give another --output"
        ) from error


def _as_json(training: Training) -> dict[str, Any]:
    return dict(json.loads(to_json(asdict(training), default=str)))
