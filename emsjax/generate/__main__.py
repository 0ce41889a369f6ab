"""The command line of generation: `python -m emsjax.generate`."""

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from emsjax.cli import command
from emsjax.cli import hosts_options as hosts
from emsjax.cli import model_options as shared
from emsjax.generate import own_options as own
from emsjax.generate import run as job
from emsjax.generate.options import Options
from emsjax.version import __version__

_app = command.new_app()


def _show_version(requested: bool) -> None:
    if requested:
        print(f"emsjax {__version__}")
        raise typer.Exit


@_app.command()
def _generate(
    prompt: own.Prompt = None,
    input: own.Input = None,
    output: own.Output = None,
    report: own.Report = None,
    chat: own.Chat = False,
    system: own.System = None,
    resume: own.Resume = False,
    overwrite: own.Overwrite = False,
    model: shared.Model = None,
    tokenizer: shared.Tokenizer = None,
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    kv_dtype: shared.KvDtype = None,
    tensor_parallel: shared.TensorParallel = None,
    batch_size: shared.BatchSize = None,
    prefix_slots: shared.PrefixSlots = 0,
    max_model_len: shared.MaxModelLen = None,
    exact: shared.Exact = False,
    method: shared.Method = "ems",
    drafter: shared.Drafter = None,
    draft_model: shared.DraftModel = None,
    draft_quantize: shared.DraftQuantize = None,
    draft_length: shared.DraftLength = None,
    max_ngram: shared.MaxNgram = None,
    min_ngram: shared.MinNgram = None,
    planner: shared.Planner = True,
    data_parallel: own.DataParallel = 1,
    distributed: hosts.Distributed = False,
    coordinator_address: hosts.CoordinatorAddress = None,
    num_processes: hosts.NumProcesses = None,
    process_id: hosts.ProcessId = None,
    max_tokens: own.MaxTokens = 128,
    min_tokens: own.MinTokens = None,
    temperature: own.Temperature = 0.0,
    adapt_temperature: own.AdaptTemperature = None,
    top_k: own.TopK = None,
    top_p: own.TopP = None,
    min_p: own.MinP = None,
    n: own.N = 1,
    presence_penalty: own.PresencePenalty = 0.0,
    frequency_penalty: own.FrequencyPenalty = 0.0,
    repetition_penalty: own.RepetitionPenalty = None,
    no_repeat_ngram_size: own.NoRepeatNgramSize = None,
    stop: own.Stop = None,
    logprobs: own.Logprobs = None,
    prompt_logprobs: own.PromptLogprobs = None,
    json_schema: own.JsonSchema = None,
    seed: own.Seed = 0,
    ignore_eos: own.IgnoreEos = False,
    stream: own.Stream = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> Options:
    """Generate text for a batch of prompts, several tokens per step.

    Without --prompt and --input, prompts come from standard input:
    JSON lines if its first line is a JSON object, else one prompt.

    Text goes to standard output, progress and statistics to standard error.
    """
    given = dict(locals())
    del given["version"]
    return Options(**given | {"prompt": tuple(prompt or ()), "stop": tuple(stop or ())})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: the command-line arguments without the program's name; `sys.argv[1:]` by default.

    Returns:
      The exit status; `emsjax.cli.command` lists them.
    """
    started = time.perf_counter()

    def body() -> int:
        options = command.parse(_app, "generate", arguments)
        return job.run(options, started) if isinstance(options, Options) else options

    names = {"max_batch_size": "--batch-size", "tensor_parallel_size": "--tensor-parallel"}
    return command.run(body, _app, names)


if __name__ == "__main__":
    sys.exit(main())
