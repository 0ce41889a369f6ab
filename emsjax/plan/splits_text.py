"""Formats what a forecast says of several devices, and figures."""

from collections.abc import Iterator

from emsjax.cli.markdown import table
from emsjax.costs.roofline import BANDWIDTH_SHARE
from emsjax.plan.forecast import Forecast
from emsjax.plan.setting import Setting
from emsjax.plan.splits import Split

NOTHING = "-"
GIGA = 1e9
_HEADER = (
    "replicas",
    "devices each",
    "samples each",
    "fits",
    "GB a device",
    "largest batch",
    "plain step, ms",
    "tokens/s plain",
    "planned",
)
_TWO_HOSTS = (
    "{name} is two hosts of four chips each. The devices that share a model belong to one process."
)


def split_parts(forecast: Forecast) -> Iterator[str]:
    """Yields the paragraphs about splits, if there are any."""
    if not forecast.splits:
        return
    setting = forecast.setting
    samples = f"{forecast.samples} samples" if forecast.samples > 1 else "one sample"
    yield f"Ways to split {setting.devices} for {samples}, counted:"
    yield table(_HEADER, [_row(each) for each in forecast.splits])
    yield f"{_choice(forecast)}: {options_of(setting)}. What follows is for this split."


def _choice(forecast: Forecast) -> str:
    if not any(each.fits for each in forecast.splits):
        return "No split fits; this one holds most samples"
    return "The fastest that fits"


def options_of(setting: Setting) -> str:
    """Returns the options with which other commands split devices so."""
    numbers = {"--data-parallel": setting.replicas, "--tensor-parallel": setting.shards}
    return " ".join(f"{name} {number}" for name, number in numbers.items() if number > 1)


def _row(split: Split) -> list[str]:
    setting = split.setting
    return [
        str(setting.replicas),
        str(setting.shards),
        str(setting.num_slots),
        "yes" if split.fits else "no",
        f"{split.memory.total / GIGA:.2f}",
        str(split.largest),
        milliseconds(split.plain_seconds),
        f"{split.plain_rate:.0f}",
        f"{split.planned_rate:.0f}",
    ]


def split_remarks(forecast: Forecast) -> Iterator[str]:
    """Yields how the exchanges of several devices are counted."""
    hardware, devices = forecast.setting.hardware, forecast.setting.devices
    if (link := hardware.link) is not None:
        start = f"{link.start_seconds * 1e6:g} us to begin and " if link.start_seconds else ""
        yield (
            f"Exchanges between {hardware.name} are counted as rings: {start}"
            f"{link.hop_seconds * 1e6:g} us from device to device, and {BANDWIDTH_SHARE:.0%} of "
            f"{link.bytes_per_second / GIGA:.0f} GB/s. None of this was measured."
        )
    if hardware.platform == "tpu" and devices.number == 8 and devices.name.endswith("-16"):
        yield _TWO_HOSTS.format(name=devices.name)


def device_of(forecast: Forecast) -> str:
    """Returns the device, or several and how they are split."""
    setting = forecast.setting
    if setting.devices.number == 1:
        return setting.hardware.name
    return f"{setting.devices} ({setting.replicas} x {setting.shards})"


def overview_remark(forecast: Forecast) -> str:
    """Returns a line that explains `device_of`."""
    setting = forecast.setting
    return (
        f"- ({setting.replicas} x {setting.shards}): replicas, and devices each. Of the ways to "
        "split the devices, this one fits and is the fastest; batches are those of all replicas, "
        "memory is that of one device.\n"
    )


def milliseconds(seconds: float | None) -> str:
    """Formats seconds as milliseconds, with three significant digits."""
    return NOTHING if seconds is None else f"{seconds * 1e3:.3g}"
