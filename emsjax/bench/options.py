"""The options that only the benchmark has, one type each."""

from pathlib import Path
from typing import Annotated

import typer

METHODS = "none,vanilla,unpad-kv,unpad-input,ems-fixed,ems"

Output = Annotated[
    Path, typer.Option(metavar="DIR", help="Directory for results, table and plots.")
]
Inputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--input", metavar="FILE", help="File of prompts, as JSON lines. May be repeated."
    ),
]
Datasets = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        show_default=False,
        help="Categories of the input to use, comma-separated. (default: all)",
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        show_default=False,
        help="Comma-separated. ems plans what to verify; ems-fixed verifies every draft. "
        f"(default: all, which are {METHODS.replace(',', ', ')})",
    ),
]
Drafters = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Comma-separated; NAME@K drafts at most K tokens. (default: as generate, combined "
        "with a draft model, else prompt-lookup)",
    ),
]
BatchSizes = Annotated[
    str, typer.Option(metavar="LIST", help="Prompts decoded together, comma-separated.")
]
Prompts = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Minimum prompts per dataset, rounded up to full batches."
    ),
]
MaxTokens = Annotated[int, typer.Option(min=2, metavar="N", help="Maximum new tokens per prompt.")]
Repeats = Annotated[
    int, typer.Option(min=1, metavar="N", help="Runs of each method; the methods take turns.")
]
Jobs = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Time whole jobs of N prompts per slot, including reading prompts and refilling "
        "slots. 0: batches whose prompts are already read.",
    ),
]
StepsPerTurn = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Steps per turn, with a cache for each method. 0: a turn is a whole text.",
    ),
]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos", help="Continue past the end-of-text token, up to --max-tokens."),
]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap text prompts in the chat template.")]
TensorParallel = Annotated[
    int, typer.Option(metavar="N", help="Devices that share the model.", rich_help_panel="Model")
]
Config = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Benchmark only a model's shape: a known name or a config.json."
    ),
]
RandomWeights = Annotated[
    bool,
    typer.Option("--random-weights", help="Fill the shape given by --config with random weights."),
]
SimulateAcceptance = Annotated[
    str | None,
    typer.Option(
        metavar="RATE",
        help="Acceptance of simulated drafts: a rate from 0 to 1, or a file from --record.",
    ),
]
PromptTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Length of each made-up prompt, in tokens.")
]
Parts = Annotated[bool, typer.Option("--parts/--no-parts", help="Time the parts of a step, too.")]
Compare = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        show_default=False,
        help="Libraries to run on the same prompts, comma-separated: transformers, vllm.",
    ),
]
VllmPython = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Python of an environment that has vLLM, for --compare vllm."
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Record acceptance in this file, at the first batch size, instead of measuring.",
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write profiler traces of a few steps into this directory."),
]
Append = Annotated[
    bool,
    typer.Option(
        "--append",
        help="Add to existing results, replacing those of the same batch size and dataset.",
    ),
]
