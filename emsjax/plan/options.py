"""Checks the command's options and makes a forecast for each model and device."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from emsjax.costs.hardware import HARDWARE
from emsjax.errors import UserError, check_whole
from emsjax.limits import DEFAULT_MAX_MODEL_LEN, MAX_BATCH_SIZE, MAX_DRAFT_LENGTH
from emsjax.loading.named import named_config
from emsjax.plan.compiler import check_compiler
from emsjax.plan.forecast import Forecast, make_forecast
from emsjax.plan.setting import Setting

_NOT_COMPILED = "nothing is compiled, figures are arithmetic"


class Options(NamedTuple):
    """The options that apply to all models and devices, see `python -m emsjax.plan --help`."""

    batch_size: int
    max_model_len: int | None
    context: int | None
    dtype: str
    quantize: str | None
    kv_dtype: str | None
    acceptance: float
    draft_length: int
    compile: bool | None


def make_forecasts(
    models: Sequence[str], devices: Sequence[str], options: Options, say: Callable[[str], None]
) -> Iterator[Forecast]:
    """Returns an iterator that makes a forecast for each model on each device.

    All options are checked before the first forecast is made.

    Args:
      models: names or paths, see `named_config`.
      devices: names in `HARDWARE`.
      options: options that apply to all models and devices.
      say: called with a line about each program before it is compiled.

    Raises:
      UserError: there is no such model, an option is out of range, or the compiler was asked for
        and is missing.
    """
    check_whole("--batch-size", options.batch_size, 1, MAX_BATCH_SIZE)
    check_whole("--draft-length", options.draft_length, 1, MAX_DRAFT_LENGTH)
    settings = [_setting(model, name, options) for model in models for name in devices]
    obstacles = {name: _no_compiler(name, options.compile) for name in devices}
    if options.compile is None:
        for obstacle in dict.fromkeys(filter(None, obstacles.values())):
            say(f"{_NOT_COMPILED}: {obstacle}")
    return (make_forecast(each, obstacles[each.topology] is None, say) for each in settings)


def _no_compiler(topology: str, wanted: bool | None) -> str | None:
    """Returns why not to compile for a device; None if its compiler is installed and wanted.

    Raises:
      UserError: `wanted` is true and the compiler is missing.
    """
    if wanted is False:
        return _NOT_COMPILED
    try:
        check_compiler(topology)
    except UserError as error:
        if wanted:
            raise
        return str(error)
    return None


def _setting(model: str, topology: str, options: Options) -> Setting:
    config = named_config(model)
    longest = options.max_model_len
    if longest is None:
        longest = min(config.max_positions, DEFAULT_MAX_MODEL_LEN)
    check_whole("--max-model-len", longest, 2, config.max_positions)
    context = longest // 2 if options.context is None else options.context
    check_whole("--context", context, 1, longest)
    return Setting(
        name=model,
        config=config,
        topology=topology,
        hardware=HARDWARE[topology],
        num_slots=options.batch_size,
        max_model_len=longest,
        context=context,
        dtype=options.dtype,
        quantize=options.quantize,
        kv_dtype=options.kv_dtype,
        acceptance=options.acceptance,
        draft_length=options.draft_length,
    )
