"""The command line of training: `python -m emsjax.train --input PROMPTS --output DIRECTORY`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emsjax.cli import command

if TYPE_CHECKING:
    from emsjax.train.fit import Progress

_app = command.new_app()


@_app.command()
def train(
    output: Annotated[Path, typer.Option(help="Directory for the run; an old one goes on.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", help="Prompts: JSON lines or plain text; may be repeated."),
    ] = None,
    own_prompts: Annotated[
        int, typer.Option(min=0, help="Prompts that the model makes up itself, besides.")
    ] = 0,
    model: Annotated[
        str | None, typer.Option(help="The target. (default: SmolLM2-135M-Instruct)")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the target.")] = "auto",
    outputs: Annotated[int, typer.Option(min=1, help="Texts written for each prompt.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=8, help="Of each text.")] = 160,
    longest_prompt: Annotated[int, typer.Option(min=1, help="Longer ones are left out.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts written together.")] = 48,
    ignore_eos: Annotated[bool, typer.Option(help="Write on past the end of text.")] = False,
    layers: Annotated[int, typer.Option(min=1, help="Of the draft.")] = 2,
    width: Annotated[
        int | None, typer.Option(min=1, help="Of its layers. (default: the target's)")
    ] = None,
    vocabulary: Annotated[
        int, typer.Option(min=2, help="Tokens that the draft can guess, the most frequent.")
    ] = 8192,
    held_out: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of the prompts for evaluation.")
    ] = 0.05,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 2000,
    rows: Annotated[int, typer.Option(min=1, help="Texts an update.")] = 8,
    unroll: Annotated[int, typer.Option(min=1, help="Tokens drafted in training, at last.")] = 4,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-3,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Updates.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a draft for a model, from what the model itself writes: --draft-model OUTPUT/draft."""
    from emsjax.host.cache import use_compile_cache
    from emsjax.loading.progress import progress_bar
    from emsjax.train.fit import Fitting
    from emsjax.train.record import Writing
    from emsjax.train.run import train as run
    from emsjax.train.settings import Training

    use_compile_cache()
    training = Training(
        model,
        tuple(inputs or ()),
        output,
        own_prompts,
        dtype,
        longest_prompt,
        Writing(outputs, max_tokens, batch_size=batch_size, ignore_eos=ignore_eos),
        layers,
        width,
        vocabulary,
        held_out,
        Fitting(
            steps,
            rows,
            max_tokens,
            unroll,
            learning_rate=learning_rate,
            evaluate_every=evaluate_every,
            seed=seed,
        ),
    )
    try:
        with progress_bar("the target writes") as progress:
            draft = run(training, progress, _say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    print(f"wrote {draft}: use it with --draft-model {draft}", file=sys.stderr)


def _say(progress: "Progress") -> None:
    accepted = " ".join(f"{value:.2f}" for value in progress.accepted[:5])
    print(
        f"update {progress.step}: loss {progress.loss:.3f}, accepted tokens on texts held out, by "
        f"draft length: {accepted}",
        file=sys.stderr,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, see `command`."""
    return command.run(lambda: command.parse(_app, "train", arguments))


if __name__ == "__main__":
    sys.exit(main())
