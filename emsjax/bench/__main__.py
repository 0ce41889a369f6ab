"""The command line of the benchmark: `python -m emsjax.bench --input FILE --output DIRECTORY`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from emsjax.cli import command

_app = command.new_app()


@_app.command()
def bench(
    output: Annotated[Path, typer.Option(help="Directory for results, table and plots.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", help="Prompts: JSON lines; may be repeated."),
    ] = None,
    datasets: Annotated[
        str, typer.Option(help="Categories of the input, comma-separated. (default: all)")
    ] = "",
    methods: Annotated[
        str, typer.Option(help="ems plans, ems-fixed verifies every draft.")
    ] = "none,vanilla,unpad-kv,unpad-input,ems-fixed,ems",
    drafters: Annotated[
        str | None,
        typer.Option(help="NAME@K drafts at most K tokens. (default: prompt-lookup, or combined)"),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,2,4,8",
    prompts: Annotated[
        int, typer.Option(min=1, help="At least so many of a dataset, in full batches.")
    ] = 24,
    max_tokens: Annotated[int, typer.Option(min=2, help="Of each text.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Of each run; they take turns.")] = 3,
    steps_per_turn: Annotated[
        int,
        typer.Option(
            min=0,
            help="Take turns within texts, after so many steps; each then has its own cache.",
        ),
    ] = 0,
    ignore_eos: Annotated[bool, typer.Option(help="Go on past the end of text.")] = False,
    chat: Annotated[
        bool, typer.Option(help="Put text prompts into the model's chat template.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="As for generate. (default: SmolLM2-135M-Instruct)")
    ] = None,
    draft_model: Annotated[str | None, typer.Option(help="As for generate.")] = None,
    dtype: Annotated[str, typer.Option(help="As for generate.")] = "auto",
    config: Annotated[
        str | None, typer.Option(help="Only the shape of a model: a name or a config.json.")
    ] = None,
    random_weights: Annotated[bool, typer.Option(help="For that shape.")] = False,
    simulate_acceptance: Annotated[
        str | None, typer.Option(metavar="RATE|FILE", help="What is accepted of made-up drafts.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each made-up prompt.")] = 512,
    parts: Annotated[bool, typer.Option(help="Time the parts of a step, too.")] = True,
    compare: Annotated[
        str | None, typer.Option(metavar="transformers", help="Run that on the same prompts.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Write what was accepted there, at the first batch size; no figures."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write profiler traces of a few steps there.")
    ] = None,
    append: Annotated[
        bool, typer.Option(help="Add to results, in the place of those of batch size and dataset.")
    ] = False,
) -> None:
    """Compare plain decoding, padded methods and EMS-SD side by side.

    Writes results.json, results.md and plots.
    """
    from emsjax.bench.run import record_acceptance, run
    from emsjax.bench.settings import Settings, check

    settings = Settings(
        methods=_names(methods),
        drafters=None if drafters is None else _names(drafters),
        batch_sizes=_numbers(batch_sizes),
        inputs=tuple(inputs or ()),
        datasets=_names(datasets),
        output=output,
        model=model,
        draft_model=draft_model,
        config=config,
        random_weights=random_weights,
        simulate_acceptance=simulate_acceptance,
        prompt_tokens=prompt_tokens,
        prompts=prompts,
        max_tokens=max_tokens,
        repeats=repeats,
        steps_per_turn=steps_per_turn,
        ignore_eos=ignore_eos,
        chat=chat,
        dtype=dtype,
        parts=parts,
        compare=compare,
        record=record,
        trace=trace,
        append=append,
    )
    check(settings)
    (run if record is None else record_acceptance)(settings)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, see `command`."""
    return command.run(lambda: command.parse(_app, "bench", arguments))


if __name__ == "__main__":
    sys.exit(main())
