"""The command line of forecasts: `python -m emsjax.plan --model M --topology v5e`."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emsjax.cli import command
from emsjax.cli.interrupts import interrupts_wait
from emsjax.errors import UserError
from emsjax.limits import KV_DTYPES, PLANNED_QUANTIZATIONS
from emsjax.plan import own_options as own
from emsjax.plan.slices import slice_named

if TYPE_CHECKING:
    from emsjax.plan.forecast import Forecast

_app = command.new_app()


@_app.command()
def plan(
    model: own.Model = None,
    topology: own.Topology = None,
    batch_size: own.BatchSize = 8,
    max_model_len: own.MaxModelLen = None,
    context: own.Context = None,
    dtype: own.Dtype = "bfloat16",
    quantize: own.Quantize = None,
    kv_dtype: own.KvDtype = None,
    acceptance: own.Acceptance = 0.7,
    draft_length: own.DraftLength = 7,
    compile: own.Compile = None,
    as_json: own.AsJson = False,
) -> None:
    """Forecast whether a model fits on a device, how long a step takes, and the speedup.

    You do not need the device: its compiler works without it, and nothing runs.
    One table compares several models or devices.
    """
    devices = [slice_named(name) for name in topology or ["v5e"]]
    _check_name("--dtype", dtype, own.DTYPES)
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
    models = model or [own.DEFAULT_MODEL]
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
