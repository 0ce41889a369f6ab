"""The command line of planning: `python -m emsjax.plan --model M --topology v5e`."""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from emsjax.cli import command
from emsjax.cli.interrupts import interrupts_wait
from emsjax.costs.hardware import HARDWARE
from emsjax.errors import UserError

if TYPE_CHECKING:
    from emsjax.plan.answer import Plan

# Of the model's, where no length is asked for.
DEFAULT_MODEL = "smollm2-135m"
_DTYPES = ("bfloat16", "float16", "float32")

_app = command.new_app()


@_app.command()
def plan(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A built-in name such as opt-6.7b, a config.json, or as for generate; may be "
            f"repeated. (default: {DEFAULT_MODEL})"
        ),
    ] = None,
    topology: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(HARDWARE)}: one device; may be repeated. (default: v5e)"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples decoded together.")] = 8,
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Longest prompt and output together, tokens. (default: as generate)"),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Cached tokens of each sample when a step is timed. (default: half of the most)"
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"{', '.join(_DTYPES)}.")] = "bfloat16",
    acceptance: Annotated[
        float, typer.Option(help="How likely a draft token is right if those before it are.")
    ] = 0.7,
    draft_length: Annotated[int, typer.Option(help="Most tokens to draft a step.")] = 7,
    compile: Annotated[
        bool, typer.Option(help="Ask the TPU compiler; otherwise all is arithmetic.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: a list of plans.")] = False,
) -> None:
    """Does a model fit on a device that is not here, how long is a step, how much faster is it.

    Programs are compiled by the TPU compiler, which needs no TPU; nothing runs. Several models or
    devices give one table.
    """
    devices = [_device(name) for name in topology or ["v5e"]]
    _check_name("--dtype", dtype, _DTYPES)
    if not 0 <= acceptance <= 1:
        raise UserError(f"--acceptance {acceptance:g} is no probability; give one from 0 to 1.")
    compiling = compile and any(HARDWARE[name].is_tpu for name in devices)
    _prepare_environment(compiling)
    with interrupts_wait():
        from emsjax.plan.question import Asked, ask

    asked = Asked(batch_size, max_model_len, context, dtype, acceptance, draft_length, compile)
    plans: list[Plan] = []
    try:
        for each in ask(model or [DEFAULT_MODEL], devices, asked, _say):
            plans.append(each)  # noqa: PERF402 those before an interrupt are to be had
    finally:
        if plans:
            several = len(devices) * len(model or [DEFAULT_MODEL]) > 1
            print(_written(plans, as_json, several))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _written(plans: "Sequence[Plan]", as_json: bool, several: bool) -> str:
    from emsjax.plan import record, text

    if as_json:
        return json.dumps([record.record(each) for each in plans], indent=1)
    return text.overview(plans) if several else text.details(plans[0])


def _device(name: str) -> str:
    """The topology as the table has it: one chip of v5e is v5e-1, too."""
    known = name.lower().removesuffix("-1")
    _check_name("--topology", known, tuple(HARDWARE), name)
    return known


def _check_name(option: str, value: str, names: Sequence[str], given: str | None = None) -> None:
    if value not in names:
        raise UserError(f"{option} {given or value} is not there; choose from {', '.join(names)}.")


def _prepare_environment(compiling: bool) -> None:
    """For this process alone, before jax looks: no device of this machine is touched."""
    from emsjax.pallas_kernels.environment import tpu_compiler

    os.environ["JAX_PLATFORMS"] = "cpu"
    if compiling:
        os.environ.update(tpu_compiler())
    # Programs for devices that are not here can be put into the cache but not taken out.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, see `command`."""
    return command.run(lambda: command.parse(_app, "plan", arguments))


if __name__ == "__main__":
    sys.exit(main())
