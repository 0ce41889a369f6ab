"""The options of forecasts, one type each."""

from typing import Annotated

import typer

from emsjax.costs.hardware import HARDWARE

DEFAULT_MODEL = "smollm2-135m"
DTYPES = ("bfloat16", "float16", "float32")

Model = Annotated[
    list[str] | None,
    typer.Option(
        help="Built-in name such as opt-6.7b, a config.json, or any model that generate takes; "
        f"may be repeated. (default: {DEFAULT_MODEL})"
    ),
]
Topology = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Device: {', '.join(HARDWARE)}; or several linked ones, such as v5e-8 and "
        "h100x8. May be repeated. (default: v5e)"
    ),
]
BatchSize = Annotated[int, typer.Option(help="Samples decoded together, on all devices.")]
MaxModelLen = Annotated[
    int | None,
    typer.Option(help="Maximum tokens of prompt and output together. (default: as generate)"),
]
Context = Annotated[
    int | None,
    typer.Option(
        help="Cached tokens per sample in the timed step. (default: half of --max-model-len)"
    ),
]
Dtype = Annotated[
    str, typer.Option(help=f"Dtype of weights, activations and cache: {', '.join(DTYPES)}.")
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="int8|int4",
        help="Dtype of weights, if not that of --dtype; int4 for a file in groups of 128.",
    ),
]
KvDtype = Annotated[
    str | None, typer.Option(metavar="int8", help="Dtype of the cache, if not that of --dtype.")
]
Acceptance = Annotated[
    float,
    typer.Option(
        help="Probability that a draft token is accepted if those before it are. For one model "
        "on one device, other values are shown, too."
    ),
]
DraftLength = Annotated[int, typer.Option(help="Maximum draft tokens per sample and step.")]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile with the device's own compiler, or only estimate. (default: compile if "
        "the compiler is installed)",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list.")]
