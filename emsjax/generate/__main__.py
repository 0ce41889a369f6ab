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
            wanted = "whole number" if kind is int else "number"
            raise typer.BadParameter(f"{value!r} is not a {wanted}") from None

    return typer.Option(flag, help=text, rich_help_panel=panel, metavar="N", parser=parse)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"emsjax {__version__}")
        raise typer.Exit


# Where a model's generation config may say otherwise.
_MODELS = "(default: the model's, else off)"
_IO, _MODEL, _SAMPLING, _DRAFTING = "Input and output", "Model", "Sampling", "Drafting"


@_app.command()
def _generate(
    prompt: Annotated[
        list[str] | None,
        _option("--prompt", "A prompt; give it again for more.", _IO, "TEXT"),
    ] = None,
    input: Annotated[
        str | None,
        _option("--input", "JSON lines, one request each; - is standard input.", _IO, "FILE|-"),
    ] = None,
    output: Annotated[
        str | None,
        _option("--output", "Write JSON lines there; - is standard output.", _IO, "FILE|-"),
    ] = None,
    report: Annotated[
        str | None,
        _option("--report", "Write a page there: where each token came from.", _IO, "FILE.html"),
    ] = None,
    chat: Annotated[
        bool, _option("--chat", "Put text prompts into the model's chat template.", _IO)
    ] = False,
    resume: Annotated[
        bool, _option("--resume", "Continue --output: finished ids are not run again.", _IO)
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
    batch_size: Annotated[
        int | None,
        _number("--batch-size", "Prompts decoded together. (default: 8)", _MODEL),
    ] = None,
    max_model_len: Annotated[
        int | None,
        _number("--max-model-len", "Longest prompt and output together, tokens.", _MODEL),
    ] = None,
    exact: Annotated[
        bool, _option("--exact", "Output equal to plain decoding's bit for bit.", _MODEL)
    ] = False,
    method: Annotated[
        str,
        _option(
            "--method",
            "ems; none: plain decoding; or padded: vanilla, unpad-kv, unpad-input.",
            _DRAFTING,
            "METHOD",
        ),
    ] = "ems",
    drafter: Annotated[
        str | None,
        _option("--drafter", f"{', '.join(DRAFTERS)}. (default: the best at hand)", _DRAFTING),
    ] = None,
    draft_model: Annotated[
        str | None,
        _option("--draft-model", "A smaller model, or one trained as a draft.", _DRAFTING),
    ] = None,
    draft_length: Annotated[
        int | None,
        _number("--draft-length", "Most tokens to draft a step. (default: 7)", _DRAFTING),
    ] = None,
    max_ngram: Annotated[
        int | None,
        _number("--max-ngram", "Longest n-gram to look up. (default: 3)", _DRAFTING),
    ] = None,
    min_ngram: Annotated[
        int | None,
        _number("--min-ngram", "Shortest n-gram to look up. (default: 1)", _DRAFTING),
    ] = None,
    planner: Annotated[
        bool,
        _option("--planner/--no-planner", "Verify only drafts that are worth it.", _DRAFTING),
    ] = True,
    max_tokens: Annotated[
        int, _number("--max-tokens", "Most tokens to generate a prompt.", _SAMPLING)
    ] = 128,
    min_tokens: Annotated[
        int, _number("--min-tokens", "No end of text before so many tokens.", _SAMPLING)
    ] = 0,
    temperature: Annotated[
        float, _number("--temperature", "0 is greedy: the likeliest token.", _SAMPLING, float)
    ] = 0.0,
    adapt_temperature: Annotated[
        float | None,
        _number("--adapt-temperature", "That at the start of indented lines.", _SAMPLING, float),
    ] = None,
    top_k: Annotated[
        int | None, _number("--top-k", f"Only the N likeliest tokens. {_MODELS}", _SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None,
        _number("--top-p", f"Only the likeliest that make up N. {_MODELS}", _SAMPLING, float),
    ] = None,
    min_p: Annotated[
        float | None,
        _number("--min-p", f"Only those N times as likely as the 1st. {_MODELS}", _SAMPLING, float),
    ] = None,
    n: Annotated[int, _number("--n", "Outputs a prompt.", _SAMPLING)] = 1,
    presence_penalty: Annotated[
        float, _number("--presence-penalty", "On tokens in the output.", _SAMPLING, float)
    ] = 0.0,
    frequency_penalty: Annotated[
        float, _number("--frequency-penalty", "On them, each time.", _SAMPLING, float)
    ] = 0.0,
    repetition_penalty: Annotated[
        float | None,
        _number(
            "--repetition-penalty", f"On tokens in prompt or output. {_MODELS}", _SAMPLING, float
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        _option("--stop", "Ends the text before this; again for more.", _SAMPLING, "TEXT"),
    ] = None,
    logprobs: Annotated[
        int | None,
        _number("--logprobs", "Of each token and of the N likeliest, in JSON lines.", _SAMPLING),
    ] = None,
    seed: Annotated[
        int, _number("--seed", "Each prompt's own follows from it and its id.", _SAMPLING)
    ] = 0,
    ignore_eos: Annotated[
        bool, _option("--ignore-eos", "Go on to --max-tokens past the end of text.", _SAMPLING)
    ] = False,
    stream: Annotated[bool, _option("--stream", "Show texts as they are generated.", _IO)] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show it and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> Options:
    """Generate text for a batch of prompts, several tokens a step.

    Without --prompt and --input, standard input is read:
    as JSON lines if its first line is a JSON object, else as one prompt.

    Text goes to standard output, progress and figures to standard error.
    """
    given = dict(locals())
    del given["version"]
    return Options(**given | {"prompt": tuple(prompt or ()), "stop": tuple(stop or ())})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: what follows the program's name; from the process where left out.

    Returns:
      The exit status, see `command`.
    """
    started = time.perf_counter()

    def body() -> int:
        options = command.parse(_app, "generate", arguments)
        return job.run(options, started) if isinstance(options, Options) else options

    return command.run(body)


if __name__ == "__main__":
    sys.exit(main())
