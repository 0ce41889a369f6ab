"""Small runs of `emsjax.train`, and what they write."""

import json
from pathlib import Path
from typing import Any

from emsjax.train.fit import Progress
from emsjax.train.record import Writing
from emsjax.train.settings import Training
from tests.tiny import checkpoint

PROMPTS = [[5, 6, 7, n] for n in range(3, 63)]


def training(corpus: Path, output: Path, **given: Any) -> Training:
    """Returns the settings of a run with one layer and few tokens."""
    return Training(
        model=str(checkpoint("llama3")),
        inputs=(corpus,),
        output=output,
        writing=Writing(outputs=2, max_tokens=40, batch_size=8, ignore_eos=True),
        layers=1,
        vocabulary=80,
        held_out=0.2,
        **given,
    )


def log(output: Path) -> list[Progress]:
    """Returns the progress that a run has written."""
    return [
        Progress(**json.loads(line)) for line in (output / "log.jsonl").read_text().splitlines()
    ]
