"""The command line of training: `python -m emsjax.train --input PROMPTS --output DIRECTORY`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emsjax.cli import command
from emsjax.errors import UserError
from emsjax.limits import (
    DRAFT_KINDS,
    HIDDEN_TRANSFER,
    JAKIRO,
    MAX_BATCH_SIZE,
    MAX_SEED,
    OWN_LAYERS,
    RECURRENT,
)

if TYPE_CHECKING:
    from emsjax.train.fit import Progress

_app = command.new_app()
_RATES = {RECURRENT: 2e-3, JAKIRO: 1e-3, OWN_LAYERS: 5e-4, HIDDEN_TRANSFER: 5e-4}


@_app.command()
def train(
    output: Annotated[
        Path, typer.Option(help="Directory of the run; continues a run that it holds.")
    ],
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", help="Prompts, as JSON lines or plain text; may be repeated."),
    ] = None,
    own_prompts: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Number of additional prompts that the model makes up."
        ),
    ] = 0,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Target model. (default: as generate)")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the target.")] = "auto",
    kind: Annotated[
        str, typer.Option(help=f"Kind of draft: {', '.join(DRAFT_KINDS)}.")
    ] = RECURRENT,
    outputs: Annotated[int, typer.Option(min=1, metavar="N", help="Texts per prompt.")] = 3,
    max_tokens: Annotated[
        int, typer.Option(min=8, metavar="N", help="Maximum tokens per text.")
    ] = 160,
    longest_prompt: Annotated[
        int, typer.Option(min=1, metavar="N", help="Leave out prompts of more tokens than this.")
    ] = 512,
    batch_size: Annotated[
        int,
        typer.Option(min=1, max=MAX_BATCH_SIZE, metavar="N", help="Texts written at a time."),
    ] = 48,
    ignore_eos: Annotated[bool, typer.Option(help="Do not stop at end-of-text tokens.")] = False,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Layers of the draft; of own-layers and hidden-transfer, the target's last N. "
            "(default: 2; half of the target's for hidden-transfer)",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Feed-forward width of the draft. (default: the target's)"
        ),
    ] = None,
    vocabulary: Annotated[
        int,
        typer.Option(
            min=2, metavar="N", help="Number of tokens the draft can propose: the most frequent."
        ),
    ] = 8192,
    held_out: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of prompts kept for evaluation.")
    ] = 0.05,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Number of updates. (default: 2000; 0 for own-layers and hidden-transfer, which "
            "are solved for)",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Texts per update.")] = 8,
    unroll: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens per draft in the last part of the training; the most that hidden-transfer "
            "drafts.",
        ),
    ] = 4,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Highest learning rate. (default: 0.002; 0.001 for jakiro; 0.0005 for own-layers "
            "and hidden-transfer)",
        ),
    ] = None,
    evaluate_every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Updates between evaluations and checkpoints.")
    ] = 200,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_SEED, metavar="N", help="Seed of the weights and of the order of texts."
        ),
    ] = 0,
    tensor_parallel: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train a draft for a model on text that the model itself writes.

    Use the result with --draft-model OUTPUT/draft.
    """
    from emsjax.host.cache import use_compile_cache
    from emsjax.loading.progress import progress_bar
    from emsjax.train.fit import Fitting
    from emsjax.train.record import Writing
    from emsjax.train.run import train as run
    from emsjax.train.settings import Training

    if tensor_parallel not in (None, 1):
        raise UserError(
            "a draft is trained with the model on one device; leave out --tensor-parallel, which "
            "the commands that use the draft have"
        )
    if kind not in DRAFT_KINDS:
        raise UserError(f"kind {kind!r} is unknown; choose from {', '.join(DRAFT_KINDS)}")
    solved = kind in (OWN_LAYERS, HIDDEN_TRANSFER)
    if steps == 0 and not solved:
        raise UserError(f"steps is 0, but a {kind} draft starts from nothing; give more --steps")
    if layers is None and kind in (RECURRENT, OWN_LAYERS):
        layers = 2
    use_compile_cache()
    training = Training(
        model=model,
        inputs=tuple(inputs or ()),
        output=output,
        own_prompts=own_prompts,
        dtype=dtype,
        longest_prompt=longest_prompt,
        writing=Writing(outputs, max_tokens, batch_size=batch_size, ignore_eos=ignore_eos),
        kind=kind,
        layers=layers,
        width=width,
        vocabulary=vocabulary,
        held_out=held_out,
        fitting=Fitting(
            (0 if solved else 2000) if steps is None else steps,
            rows,
            max_tokens,
            unroll,
            # A draft that was solved for is right at depth 1 before the first update.
            one_ahead=0.0 if solved else 0.6,
            learning_rate=_RATES[kind] if learning_rate is None else learning_rate,
            evaluate_every=evaluate_every,
            seed=seed,
        ),
    )
    if model is not None:  # the default model says itself where it comes from
        print(f"loading {model}", file=sys.stderr)
    try:
        with progress_bar("writing texts") as progress:
            draft = run(training, progress, _say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command to continue") from None
    print(f"wrote {draft}; use it with --draft-model {draft}", file=sys.stderr)


def _say(progress: "Progress") -> None:
    accepted = " ".join(f"{value:.2f}" for value in progress.accepted[:5])
    print(
        f"update {progress.step}: loss {progress.loss:.3f}, accepted tokens on held-out texts by "
        f"draft length: {accepted}",
        file=sys.stderr,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, see `command`."""
    return command.run(lambda: command.parse(_app, "train", arguments), _app)


if __name__ == "__main__":
    sys.exit(main())
