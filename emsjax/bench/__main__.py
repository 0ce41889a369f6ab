"""The command line of the benchmark: `python -m emsjax.bench --input FILE --output DIRECTORY`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from emsjax.cli import command

_app = command.new_app()
_METHODS = "none,vanilla,unpad-kv,unpad-input,ems-fixed,ems"


@_app.command()
def bench(
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory for results, table and plots.")
    ],
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input", metavar="FILE", help="File of prompts, as JSON lines. May be repeated."
        ),
    ] = None,
    datasets: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            show_default=False,
            help="Categories of the input to use, comma-separated. (default: all)",
        ),
    ] = "",
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            show_default=False,
            help="Comma-separated. ems plans what to verify; ems-fixed verifies every draft. "
            f"(default: all, {_METHODS.replace(',', ', ')})",
        ),
    ] = _METHODS,
    drafters: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Comma-separated; NAME@K drafts at most K tokens. (default: as generate, combined "
            "with a draft model, else prompt-lookup)",
        ),
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option(metavar="LIST", help="Prompts decoded together, comma-separated.")
    ] = "1,2,4,8",
    prompts: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Fewest prompts per dataset, rounded up to full batches."
        ),
    ] = 24,
    max_tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="Maximum new tokens per prompt.")
    ] = 128,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs of each method; the methods take turns.")
    ] = 3,
    jobs: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Time whole jobs of N prompts per slot: reading prompts and refilling slots "
            "included. 0: batches, whose prompts are read before.",
        ),
    ] = 0,
    steps_per_turn: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Steps per turn; each method then has its own cache. 0: a turn is a whole text.",
        ),
    ] = 0,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos", help="Continue past the end-of-text token, up to --max-tokens."
        ),
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put text prompts into the model's chat template.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="As for generate. (default: the same)"),
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="As for generate.")
    ] = None,
    draft_quantize: Annotated[
        str | None, typer.Option(metavar="int8", help="As for generate.")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="As for generate.")] = "auto",
    quantize: Annotated[str | None, typer.Option(metavar="int8", help="As for generate.")] = None,
    kv_dtype: Annotated[str | None, typer.Option(metavar="int8", help="As for generate.")] = None,
    tensor_parallel: Annotated[
        int, typer.Option(metavar="N", help="Devices that share the model.")
    ] = 1,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Benchmark only a model's shape: a known name or a config.json."
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Fill the shape given by --config with random weights."
        ),
    ] = False,
    simulate_acceptance: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Acceptance of simulated drafts: a rate from 0 to 1, or a file from --record.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Length of each made-up prompt, in tokens.")
    ] = 512,
    parts: Annotated[
        bool, typer.Option("--parts/--no-parts", help="Time the parts of a step, too.")
    ] = True,
    compare: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            show_default=False,
            help="Libraries to run on the same prompts, comma-separated: transformers, vllm.",
        ),
    ] = "",
    vllm_python: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Python of an environment that has vLLM, for --compare vllm."
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record acceptance in this file, at the first batch size, instead of measuring.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write profiler traces of a few steps into this directory."
        ),
    ] = None,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add to existing results, replacing those of the same batch size and dataset.",
        ),
    ] = False,
) -> None:
    """Compare plain decoding, padded methods and EMS-SD side by side.

    Writes results.json, results.md and plots into the output directory.
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
        draft_quantize=draft_quantize,
        config=config,
        random_weights=random_weights,
        simulate_acceptance=simulate_acceptance,
        prompt_tokens=prompt_tokens,
        prompts=prompts,
        max_tokens=max_tokens,
        repeats=repeats,
        jobs=jobs,
        steps_per_turn=steps_per_turn,
        ignore_eos=ignore_eos,
        chat=chat,
        dtype=dtype,
        quantize=quantize,
        kv_dtype=kv_dtype,
        tensor_parallel=tensor_parallel,
        parts=parts,
        compare=_names(compare),
        vllm_python=vllm_python,
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
        raise typer.BadParameter(
            f"{text!r} is not a comma-separated list of whole numbers"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, see `emsjax.cli.command`."""
    return command.run(lambda: command.parse(_app, "bench", arguments), _app)


if __name__ == "__main__":
    sys.exit(main())
