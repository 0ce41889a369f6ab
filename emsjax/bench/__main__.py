"""The command line of the benchmark: `python -m emsjax.bench --input FILE --output DIRECTORY`."""

import sys
from collections.abc import Sequence

import typer

from emsjax.bench import options
from emsjax.cli import command
from emsjax.cli import model_options as shared

_app = command.new_app()


@_app.command()
def bench(
    output: options.Output,
    inputs: options.Inputs = None,
    datasets: options.Datasets = "",
    methods: options.Methods = options.METHODS,
    drafters: options.Drafters = None,
    batch_sizes: options.BatchSizes = "1,2,4,8",
    prompts: options.Prompts = 24,
    max_tokens: options.MaxTokens = 128,
    repeats: options.Repeats = 3,
    jobs: options.Jobs = 0,
    steps_per_turn: options.StepsPerTurn = 0,
    ignore_eos: options.IgnoreEos = False,
    chat: options.Chat = False,
    model: shared.Model = None,
    draft_model: shared.DraftModel = None,
    draft_quantize: shared.DraftQuantize = None,
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    kv_dtype: shared.KvDtype = None,
    tensor_parallel: options.TensorParallel = 1,
    config: options.Config = None,
    random_weights: options.RandomWeights = False,
    simulate_acceptance: options.SimulateAcceptance = None,
    prompt_tokens: options.PromptTokens = 512,
    parts: options.Parts = True,
    compare: options.Compare = "",
    vllm_python: options.VllmPython = None,
    record: options.Record = None,
    trace: options.Trace = None,
    append: options.Append = False,
) -> None:
    """Compare plain decoding, padded methods and EMS-SD side by side.

    Writes results.json, results.md and plots into the output directory.
    """
    given = dict(locals())
    from emsjax.bench.run import record_acceptance, run
    from emsjax.bench.settings import Settings, check

    given |= {
        "inputs": tuple(inputs or ()),
        "datasets": _names(datasets),
        "methods": _names(methods),
        "drafters": None if drafters is None else _names(drafters),
        "batch_sizes": _numbers(batch_sizes),
        "compare": _names(compare),
    }
    settings = Settings(**given)
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
