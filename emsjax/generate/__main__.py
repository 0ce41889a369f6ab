"""The command line of generation: `python -m emsjax.generate`."""

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from emsjax.cli import command
from emsjax.generate import run as job
from emsjax.generate.options import Options
from emsjax.limits import DRAFTERS
from emsjax.version import __version__

_app = command.new_app()


def _option(flag: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel, metavar=metavar)


def _number(flag: str, text: str, panel: str, kind: type[int] | type[float] = int) -> Any:
    def parse(value: object) -> float:
        try:
            return kind(str(value))
        except ValueError:
            noun = "whole number" if kind is int else "number"
            raise typer.BadParameter(f"{value!r} is not a {noun}") from None

    return typer.Option(flag, help=text, rich_help_panel=panel, metavar="N", parser=parse)


def _show_version(requested: bool) -> None:
    if requested:
        print(f"emsjax {__version__}")
        raise typer.Exit


# The default of options that a model's generation config may set.
_MODELS = "(default: the model's, else off)"
_IO, _MODEL, _SAMPLING, _DRAFTING = "Input and output", "Model", "Sampling", "Drafting"


@_app.command()
def _generate(
    prompt: Annotated[
        list[str] | None,
        _option("--prompt", "A prompt; repeat for more.", _IO, "TEXT"),
    ] = None,
    input: Annotated[
        str | None,
        _option("--input", "Read JSON lines, one request each; - for stdin.", _IO, "FILE|-"),
    ] = None,
    output: Annotated[
        str | None,
        _option("--output", "Write JSON lines; - for stdout.", _IO, "FILE|-"),
    ] = None,
    report: Annotated[
        str | None,
        _option("--report", "Write an HTML page that shows each token's origin.", _IO, "FILE.html"),
    ] = None,
    chat: Annotated[
        bool, _option("--chat", "Put text prompts into the chat template.", _IO)
    ] = False,
    system: Annotated[
        str | None, _option("--system", "System message of text prompts; with --chat.", _IO, "TEXT")
    ] = None,
    resume: Annotated[
        bool, _option("--resume", "Continue --output, skipping finished ids.", _IO)
    ] = False,
    overwrite: Annotated[
        bool, _option("--overwrite", "Replace --output if it holds results.", _IO)
    ] = False,
    model: Annotated[
        str | None,
        _option("--model", "Directory or hub id. (default: SmolLM2-135M-Instruct)", _MODEL),
    ] = None,
    tokenizer: Annotated[
        str | None, _option("--tokenizer", "Directory or hub id. (default: the model's)", _MODEL)
    ] = None,
    dtype: Annotated[
        str, _option("--dtype", "auto, float32, bfloat16 or float16.", _MODEL, "TYPE")
    ] = "auto",
    quantize: Annotated[
        str | None,
        _option("--quantize", "int8: half the weights' memory. (default: none)", _MODEL, "int8"),
    ] = None,
    kv_dtype: Annotated[
        str | None,
        _option("--kv-dtype", "int8: half the cache's memory. (default: none)", _MODEL, "int8"),
    ] = None,
    batch_size: Annotated[
        int | None,
        _number("--batch-size", "Samples decoded together. (default: 8)", _MODEL),
    ] = None,
    max_model_len: Annotated[
        int | None,
        _number("--max-model-len", "Limit on prompt plus output, in tokens.", _MODEL),
    ] = None,
    exact: Annotated[
        bool, _option("--exact", "Match plain decoding bit for bit; slower.", _MODEL)
    ] = False,
    method: Annotated[
        str,
        _option(
            "--method",
            "ems, none (plain decoding), or with padding: vanilla, unpad-kv, unpad-input.",
            _DRAFTING,
            "METHOD",
        ),
    ] = "ems",
    drafter: Annotated[
        str | None,
        _option("--drafter", f"{', '.join(DRAFTERS)}. (default: the best available)", _DRAFTING),
    ] = None,
    draft_model: Annotated[
        str | None,
        _option("--draft-model", "A smaller model, a trained draft, or own-layers.", _DRAFTING),
    ] = None,
    draft_quantize: Annotated[
        str | None,
        _option("--draft-quantize", "As --quantize, of a draft model.", _DRAFTING, "int8"),
    ] = None,
    draft_length: Annotated[
        int | None,
        _number("--draft-length", "Maximum draft tokens per step. (default: 7)", _DRAFTING),
    ] = None,
    max_ngram: Annotated[
        int | None,
        _number("--max-ngram", "Longest n-gram to look up. (default: 16)", _DRAFTING),
    ] = None,
    min_ngram: Annotated[
        int | None,
        _number("--min-ngram", "Shortest n-gram to look up. (default: 1)", _DRAFTING),
    ] = None,
    planner: Annotated[
        bool,
        _option("--planner/--no-planner", "Verify only drafts that pay off.", _DRAFTING),
    ] = True,
    max_tokens: Annotated[
        int, _number("--max-tokens", "Maximum tokens to generate per output.", _SAMPLING)
    ] = 128,
    min_tokens: Annotated[
        int | None,
        _number("--min-tokens", "Fewest tokens before the output may end. (default: 0)", _SAMPLING),
    ] = None,
    temperature: Annotated[
        float, _number("--temperature", "0 always takes the likeliest token.", _SAMPLING, float)
    ] = 0.0,
    adapt_temperature: Annotated[
        float | None,
        _number(
            "--adapt-temperature", "The same, at the start of indented lines.", _SAMPLING, float
        ),
    ] = None,
    top_k: Annotated[
        int | None, _number("--top-k", f"Keep the N likeliest tokens. {_MODELS}", _SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None,
        _number("--top-p", f"Keep the likeliest that sum to N. {_MODELS}", _SAMPLING, float),
    ] = None,
    min_p: Annotated[
        float | None,
        _number("--min-p", f"Keep those N times as likely as the top. {_MODELS}", _SAMPLING, float),
    ] = None,
    n: Annotated[int, _number("--n", "Outputs per prompt.", _SAMPLING)] = 1,
    presence_penalty: Annotated[
        float, _number("--presence-penalty", "Penalise tokens in the output.", _SAMPLING, float)
    ] = 0.0,
    frequency_penalty: Annotated[
        float, _number("--frequency-penalty", "Penalise each occurrence.", _SAMPLING, float)
    ] = 0.0,
    repetition_penalty: Annotated[
        float | None,
        _number("--repetition-penalty", f"Penalise prompt and output. {_MODELS}", _SAMPLING, float),
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None,
        _number("--no-repeat-ngram-size", f"Never repeat N tokens in a row. {_MODELS}", _SAMPLING),
    ] = None,
    stop: Annotated[
        list[str] | None,
        _option("--stop", "End the output before this; repeat for more.", _SAMPLING, "TEXT"),
    ] = None,
    logprobs: Annotated[
        int | None,
        _number("--logprobs", "Add those of the token and the N likeliest to JSON.", _SAMPLING),
    ] = None,
    seed: Annotated[
        int, _number("--seed", "Each prompt's seed derives from this and its id.", _SAMPLING)
    ] = 0,
    ignore_eos: Annotated[
        bool, _option("--ignore-eos", "Continue past the end of text.", _SAMPLING)
    ] = False,
    stream: Annotated[bool, _option("--stream", "Print text as it is generated.", _IO)] = False,
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

    return command.run(body, _app, {"max_batch_size": "--batch-size"})


if __name__ == "__main__":
    sys.exit(main())
