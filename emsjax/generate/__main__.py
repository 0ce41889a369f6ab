"""The command line of generation: `python -m emsjax.generate`."""

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from emsjax.cli import command
from emsjax.cli import hosts_options as hosts
from emsjax.cli import model_options as shared
from emsjax.cli.declare import number, option
from emsjax.generate import run as job
from emsjax.generate.options import Options
from emsjax.version import __version__

_app = command.new_app()


def _show_version(requested: bool) -> None:
    if requested:
        print(f"emsjax {__version__}")
        raise typer.Exit


# The default of options that a model's generation config may set.
_MODELS = "(default: the model's, else off)"
_IO, _SAMPLING = "Input and output", "Sampling"


@_app.command()
def _generate(
    prompt: Annotated[
        list[str] | None,
        option("--prompt", "A prompt; repeat for more.", _IO, "TEXT"),
    ] = None,
    input: Annotated[
        str | None,
        option("--input", "Read JSON lines, one request each; - for stdin.", _IO, "FILE|-"),
    ] = None,
    output: Annotated[
        str | None,
        option("--output", "Write JSON lines; - for stdout.", _IO, "FILE|-"),
    ] = None,
    report: Annotated[
        str | None,
        option("--report", "Write an HTML page that shows each token's origin.", _IO, "FILE.html"),
    ] = None,
    chat: Annotated[
        bool, option("--chat", "Put text prompts into the chat template.", _IO)
    ] = False,
    system: Annotated[
        str | None, option("--system", "System message of text prompts; with --chat.", _IO, "TEXT")
    ] = None,
    resume: Annotated[
        bool, option("--resume", "Continue --output, skipping finished ids.", _IO)
    ] = False,
    overwrite: Annotated[
        bool, option("--overwrite", "Replace --output if it holds results.", _IO)
    ] = False,
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
    data_parallel: Annotated[
        int,
        number("--data-parallel", "Copies of the model, each on a device of its own.", "Model"),
    ] = 1,
    distributed: hosts.Distributed = False,
    coordinator_address: hosts.CoordinatorAddress = None,
    num_processes: hosts.NumProcesses = None,
    process_id: hosts.ProcessId = None,
    max_tokens: Annotated[
        int, number("--max-tokens", "Maximum tokens to generate per output.", _SAMPLING)
    ] = 128,
    min_tokens: Annotated[
        int | None,
        number("--min-tokens", "Fewest tokens before the output may end. (default: 0)", _SAMPLING),
    ] = None,
    temperature: Annotated[
        float, number("--temperature", "0 always takes the likeliest token.", _SAMPLING, float)
    ] = 0.0,
    adapt_temperature: Annotated[
        float | None,
        number(
            "--adapt-temperature", "The same, at the start of indented lines.", _SAMPLING, float
        ),
    ] = None,
    top_k: Annotated[
        int | None, number("--top-k", f"Keep the N likeliest tokens. {_MODELS}", _SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None,
        number("--top-p", f"Keep the likeliest that sum to N. {_MODELS}", _SAMPLING, float),
    ] = None,
    min_p: Annotated[
        float | None,
        number("--min-p", f"Keep those N times as likely as the top. {_MODELS}", _SAMPLING, float),
    ] = None,
    n: Annotated[int, number("--n", "Outputs per prompt.", _SAMPLING)] = 1,
    presence_penalty: Annotated[
        float, number("--presence-penalty", "Penalise tokens in the output.", _SAMPLING, float)
    ] = 0.0,
    frequency_penalty: Annotated[
        float, number("--frequency-penalty", "Penalise each occurrence.", _SAMPLING, float)
    ] = 0.0,
    repetition_penalty: Annotated[
        float | None,
        number("--repetition-penalty", f"Penalise prompt and output. {_MODELS}", _SAMPLING, float),
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None,
        number("--no-repeat-ngram-size", f"Never repeat N tokens in a row. {_MODELS}", _SAMPLING),
    ] = None,
    stop: Annotated[
        list[str] | None,
        option("--stop", "End the output before this; repeat for more.", _SAMPLING, "TEXT"),
    ] = None,
    logprobs: Annotated[
        int | None,
        number("--logprobs", "Add those of the token and the N likeliest to JSON.", _SAMPLING),
    ] = None,
    prompt_logprobs: Annotated[
        int | None,
        number("--prompt-logprobs", "The same for the prompt's own tokens.", _SAMPLING),
    ] = None,
    json_schema: Annotated[
        str | None,
        option("--json-schema", "Write JSON that fits this schema.", _SAMPLING, "FILE"),
    ] = None,
    seed: Annotated[
        int, number("--seed", "Each prompt's seed derives from this and its id.", _SAMPLING)
    ] = 0,
    ignore_eos: Annotated[
        bool, option("--ignore-eos", "Continue past the end of text.", _SAMPLING)
    ] = False,
    stream: Annotated[bool, option("--stream", "Print text as it is generated.", _IO)] = False,
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
