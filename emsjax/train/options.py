"""The options that only training has, one type each."""

from pathlib import Path
from typing import Annotated

import typer

from emsjax.limits import DRAFT_KINDS, MAX_BATCH_SIZE, MAX_SEED

Output = Annotated[Path, typer.Option(help="Directory of the run; a run already there continues.")]
Inputs = Annotated[
    list[Path] | None,
    typer.Option("--input", help="Prompts, as JSON lines or plain text; may be repeated."),
]
OwnPrompts = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="Additional prompts for the model to make up."),
]
Kind = Annotated[str, typer.Option(help=f"Kind of draft: {', '.join(DRAFT_KINDS)}.")]
StartFrom = Annotated[
    str | None,
    typer.Option(
        metavar="DRAFT",
        help="Recurrent draft to train further: its directory, or shipped for the one that comes "
        "with emsjax. It determines --layers, --width and --vocabulary.",
    ),
]
Outputs = Annotated[int, typer.Option(min=1, metavar="N", help="Texts per prompt.")]
MaxTokens = Annotated[int, typer.Option(min=8, metavar="N", help="Maximum tokens per text.")]
LongestPrompt = Annotated[
    int, typer.Option(min=1, metavar="N", help="Skip prompts longer than N tokens.")
]
BatchSize = Annotated[
    int,
    typer.Option(min=1, max=MAX_BATCH_SIZE, metavar="N", help="Texts written at a time."),
]
IgnoreEos = Annotated[bool, typer.Option(help="Continue past end-of-text tokens.")]
Layers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Layers of the draft; for own-layers and hidden-transfer, the target's last N. "
        "(default: 2; half of the target's for hidden-transfer)",
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Feed-forward width of the draft. (default: the target's)"
    ),
]
Vocabulary = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help="Tokens the draft can propose: the N most frequent. (default: 8192)",
    ),
]
HeldOut = Annotated[
    float, typer.Option(min=0.001, max=0.5, help="Share of prompts kept for evaluation.")
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Number of updates. (default: 2000; 0 for own-layers and hidden-transfer, which "
        "are solved for)",
    ),
]
Rows = Annotated[int, typer.Option(min=1, metavar="N", help="Texts per update.")]
Unroll = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens per draft in the last part of the training; hidden-transfer drafts at most "
        "as many.",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Highest learning rate. (default: 0.002; 0.001 for jakiro; 0.0005 for own-layers, "
        "hidden-transfer and --start-from)",
    ),
]
EvaluateEvery = Annotated[
    int, typer.Option(min=1, metavar="N", help="Updates between evaluations and checkpoints.")
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=MAX_SEED, metavar="N", help="Seed of the weights and of the order of texts."
    ),
]
TensorParallel = Annotated[int | None, typer.Option(hidden=True)]
