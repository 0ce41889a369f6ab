"""Checks the command's options and makes a forecast for each model and device or slice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from emsjax.errors import UserError, check_whole
from emsjax.limits import DEFAULT_MAX_MODEL_LEN, MAX_BATCH_SIZE, MAX_DRAFT_LENGTH
from emsjax.loading.named import named_config
from emsjax.plan.compiler import check_compiler
from emsjax.plan.forecast import Forecast, make_forecast
from emsjax.plan.setting import Setting
from emsjax.plan.slices import Slice
from emsjax.plan.splits import best_first, splits

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
    models: Sequence[str], devices: Sequence[Slice], options: Options, say: Callable[[str], None]
) -> Iterator[Forecast]:
    """Returns an iterator that makes a forecast for each model on each device or slice.

    Several devices are split into replicas as is best for the batch. All options are checked before
    the first forecast is made.

    Args:
      models: names or paths, see `named_config`.
      devices: devices or slices.
      options: options that apply to all models and devices.
      say: called with a line about each program before it is compiled.

    Raises:
      UserError: there is no such model, an option is out of range, or the compiler was asked for
        and is missing.
    """
    check_whole("--batch-size", options.batch_size, 1, MAX_BATCH_SIZE)
    check_whole("--draft-length", options.draft_length, 1, MAX_DRAFT_LENGTH)
    settings = [(_setting(model, each, options), each) for model in models for each in devices]
    obstacles = {each: _no_compiler(each, options.compile) for each in devices}
    if options.compile is None:
        for obstacle in dict.fromkeys(filter(None, obstacles.values())):
            say(f"{_NOT_COMPILED}: {obstacle}")
    return (_forecast(*each, obstacles[each[1]] is None, say) for each in settings)


def _forecast(
    alone: Setting, devices: Slice, compiling: bool, say: Callable[[str], None]
) -> Forecast:
    """Makes the forecast for one device, or for the best split of several."""
    if devices.number == 1:
        return make_forecast(alone, compiling, say)
    found = splits(alone, devices.number)
    ranked = best_first(found)
    forecast = make_forecast(ranked[0].setting, compiling, say)
    # What fits by arithmetic need not fit by the compiler's account.
    others = (each.setting for each in ranked[1:] if each.fits)
    while not forecast.fits and (other := next(others, None)) is not None:
        second = make_forecast(other, compiling, say)
        forecast = second if second.fits else forecast
    return replace(forecast, splits=found)


def _no_compiler(devices: Slice, wanted: bool | None) -> str | None:
    """Returns why not to compile for devices; None if their compiler is installed and wanted.

    Raises:
      UserError: `wanted` is true and the compiler is missing.
    """
    if wanted is False:
        return _NOT_COMPILED
    try:
        check_compiler(*devices)
    except UserError as error:
        if wanted:
            raise
        return str(error)
    return None


def _setting(model: str, devices: Slice, options: Options) -> Setting:
    """Returns the setting of one of the devices with the whole batch."""
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
        topology=devices.chip,
        hardware=devices.hardware,
        num_slots=options.batch_size,
        max_model_len=longest,
        context=context,
        dtype=options.dtype,
        quantize=options.quantize,
        kv_dtype=options.kv_dtype,
        acceptance=options.acceptance,
        draft_length=options.draft_length,
    )
