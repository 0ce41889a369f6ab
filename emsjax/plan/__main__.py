"""The command line of forecasts: `python -m emsjax.plan --model M --topology v5e`."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from emsjax.cli import command
from emsjax.cli.interrupts import interrupts_wait
from emsjax.costs.hardware import HARDWARE
from emsjax.errors import UserError
from emsjax.limits import KV_DTYPES, PLANNED_QUANTIZATIONS
from emsjax.plan.slices import slice_named

if TYPE_CHECKING:
    from emsjax.plan.forecast import Forecast

DEFAULT_MODEL = "smollm2-135m"
_DTYPES = ("bfloat16", "float16", "float32")

_app = command.new_app()


@_app.command()
def plan(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Built-in name such as opt-6.7b, a config.json, or any model that generate takes; "
            f"may be repeated. (default: {DEFAULT_MODEL})"
        ),
    ] = None,
    topology: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Device: {', '.join(HARDWARE)}; or several linked ones, such as v5e-8 and "
            "h100x8. May be repeated. (default: v5e)"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples decoded together, on all devices.")] = 8,
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Maximum tokens of prompt and output together. (default: as generate)"),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Cached tokens per sample in the timed step. (default: half of --max-model-len)"
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help=f"Dtype of weights, activations and cache: {', '.join(_DTYPES)}.")
    ] = "bfloat16",
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="int8|int4",
            help="Dtype of weights, if not that of --dtype; int4 for a file in groups of 128.",
        ),
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(metavar="int8", help="Dtype of the cache, if not that of --dtype.")
    ] = None,
    acceptance: Annotated[
        float,
        typer.Option(
            help="Probability that a draft token is accepted if those before it are. For one model "
            "on one device, other values are shown, too."
        ),
    ] = 0.7,
    draft_length: Annotated[
        int, typer.Option(help="Maximum draft tokens per sample and step.")
    ] = 7,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile with the device's own compiler, or only estimate. (default: compile if "
            "the compiler is installed)",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Forecast whether a model fits on a device, how long a step takes, and the speedup.

    You do not need the device: its compiler works without it, and nothing runs.
    One table compares several models or devices.
    """
    devices = [slice_named(name) for name in topology or ["v5e"]]
    _check_name("--dtype", dtype, _DTYPES)
    if quantize is not None:
        _check_name("--quantize", quantize, PLANNED_QUANTIZATIONS)
    if kv_dtype is not None:
        _check_name("--kv-dtype", kv_dtype, KV_DTYPES)
    if not 0 <= acceptance <= 1:
        raise UserError(f"--acceptance is {acceptance:g}; it must be a probability from 0 to 1.")
    _prepare_environment(compiling=compile is not False)
    with interrupts_wait():
        from emsjax.plan.options import Options, make_forecasts

    options = Options(
        batch_size=batch_size,
        max_model_len=max_model_len,
        context=context,
        dtype=dtype,
        quantize=quantize,
        kv_dtype=kv_dtype,
        acceptance=acceptance,
        draft_length=draft_length,
        compile=compile,
    )
    models = model or [DEFAULT_MODEL]
    forecasts: list[Forecast] = []
    try:
        for each in make_forecasts(models, devices, options, _say):
            forecasts.append(each)  # noqa: PERF402 an interrupt must keep those made before it
    finally:
        if forecasts:
            print(_formatted(forecasts, as_json, several=len(devices) * len(models) > 1))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _formatted(forecasts: "Sequence[Forecast]", as_json: bool, several: bool) -> str:
    from emsjax.host.json_text import to_json
    from emsjax.plan import record, text

    if as_json:
        return to_json([record.record(each) for each in forecasts], indent=1)
    return text.overview(forecasts) if several else text.details(forecasts[0])


def _check_name(option: str, value: str, names: Sequence[str]) -> None:
    if value not in names:
        raise UserError(f"{option} {value} is unknown; choose from {', '.join(names)}.")


def _prepare_environment(compiling: bool) -> None:
    """Keeps jax away from this machine's devices; call it before jax is imported.

    Args:
      compiling: whether to prepare for the TPU's compiler, too.
    """
    from emsjax.pallas_kernels.environment import tpu_compiler

    os.environ["JAX_PLATFORMS"] = "cpu"
    if compiling:
        os.environ.update(tpu_compiler())
    # The cache can store programs for absent devices but cannot load them.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, see `command`."""
    return command.run(lambda: command.parse(_app, "plan", arguments), _app)


if __name__ == "__main__":
    sys.exit(main())
