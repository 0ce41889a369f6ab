"""The settings of a training, which a run that goes on must share."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.host.files import replace_text
from emsjax.loading.hf.config import read_json
from emsjax.train.fit import Fitting
from emsjax.train.record import Writing

OWN_PROMPTS, SETTINGS = "own-prompts.jsonl", "settings.json"


@dataclass(frozen=True)
class Training:
    """All settings of a training.

    Attributes:
      model: the target, as for `load_model`.
      inputs: files with prompts.
      own_prompts: prompts that the target makes up itself, besides those in files.
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
    own_prompts: int = 0
    dtype: str = "auto"
    longest_prompt: int = 512
    writing: Writing = field(default_factory=Writing)
    layers: int = 2
    width: int | None = None
    vocabulary: int = 8192
    held_out: float = 0.05
    fitting: Fitting = field(default_factory=Fitting)


def settings_before(training: Training) -> dict[str, Any] | None:
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


def settle(training: Training, prompts: Sequence[Sequence[int]], before: dict[str, Any]) -> None:
    """Writes down which prompts these are, or compares them with those of the run so far.

    Args:
      training: the settings.
      prompts: token ids.
      before: what `settings_before` found; empty where there was nothing.

    Raises:
      UserError: they are others than the run's.
    """
    digest = hashlib.sha256(repr([list(prompt) for prompt in prompts]).encode()).hexdigest()[:16]
    if before.get("prompts", digest) != digest:
        files = [*training.inputs, *([OWN_PROMPTS] if training.own_prompts else [])]
        raise UserError(
            f"{training.output} holds a training with other prompts than those of "
            f"{', '.join(map(str, files))} today: give another --output"
        )
    write_settings(training, {"prompts": digest})


def write_settings(training: Training, more: dict[str, str]) -> None:
    """Writes the settings down, now that model and prompts are known to be good."""
    content = json.dumps(_as_json(training) | more, indent=1)
    try:
        training.output.mkdir(parents=True, exist_ok=True)
        replace_text(training.output / SETTINGS, content + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {training.output} ({error.strerror})") from error


def _as_json(training: Training) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(training), default=str)))
