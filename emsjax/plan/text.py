"""Formats forecasts as Markdown: the details of one, or a table of several."""

from collections.abc import Iterable, Iterator, Sequence

from emsjax.cli.markdown import table
from emsjax.costs.roofline import BANDWIDTH_SHARE, COMPUTE_SHARE
from emsjax.plan.compiler import COMPILERS
from emsjax.plan.forecast import BatchSpeedup, Forecast, StepTime
from emsjax.plan.memory import Memory
from emsjax.plan.setting import Setting
from emsjax.plan.speedup import Speedup
from emsjax.plan.splits_text import (
    GIGA,
    NOTHING,
    device_of,
    milliseconds,
    overview_remark,
    split_parts,
    split_remarks,
)

_COMPILED = (
    "Compiled: the {compiler} compiled the decode program of greedy batches and reported its "
    "{reported}. Nothing ran."
)
_NOT_COMPILED = (
    "Nothing was compiled: memory is counted from array sizes, and temporaries include only logits "
    "and activations."
)
_GPU_MEMORY = "Usable memory of a GPU is three quarters of the total, jax's default."
_EXPERTS = (
    "Experts: the rows of a step are taken to choose experts at random, so that more rows read "
    "more of them. Rows of similar texts read fewer."
)
_LEFT_OUT = (
    "Speedups leave out the time to read prompts and to draft. Prompt lookup takes next to no "
    "time, but a draft model takes longer."
)


def details(forecast: Forecast) -> str:
    """Returns all of one forecast as Markdown."""
    setting = forecast.setting
    title = (
        f"{setting.name} in {setting.numbers} on {setting.devices}: {forecast.samples} "
        f"samples of {setting.max_model_len} tokens"
    )
    shown = forecast.shown
    of = " of one replica" if setting.replicas > 1 else ""
    step = (
        f"Time of a step{of} of {shown.num_slots} samples with {shown.context} cached tokens each, "
        "by its number of rows:"
    )
    speedup = (
        f"Speedup over plain decoding if each draft token is accepted with probability "
        f"{setting.acceptance:g}, given that those before it are:"
    )
    parts = [title, *split_parts(forecast), _verdict(forecast), _memory_table(forecast)]
    if forecast.largest is not None:
        parts += [step, _step_table(forecast.steps), speedup, _speedup_table(forecast)]
        parts += ["Planned speedup by acceptance:", _acceptance_table(forecast)]
    return "\n\n".join([*parts, explanation([forecast])])


def _verdict(forecast: Forecast) -> str:
    needed, usable = forecast.requested.total / GIGA, forecast.usable_bytes / GIGA
    setting, fits = forecast.setting, "It fits" if forecast.fits else "It does not fit"
    who = "each device" if setting.devices.number > 1 else "it"
    verdict = f"{fits}: {who} needs {needed:.2f} GB, and {usable:.2f} GB are usable."
    if forecast.largest is None:
        return f"{verdict} Not even one sample of this length fits."
    most = forecast.largest.num_slots
    each = f" a replica, {most * setting.replicas} in all" if setting.replicas > 1 else ""
    return f"{verdict} The largest batch that fits is {most}{each}."


def _memory_table(forecast: Forecast) -> str:
    memories = {each.num_slots: each for each in (forecast.requested, forecast.largest) if each}
    header = ["memory, GB", "weights", "cache", "state", "temporaries", "total", ""]
    return table(header, [_memory_row(each) for each in memories.values()])


def _memory_row(memory: Memory) -> list[str]:
    parts = (memory.weights, memory.cache, memory.state, memory.temporaries, memory.total)
    how = "compiled" if memory.compiled else "counted"
    return [f"batch {memory.num_slots}", *(f"{part / GIGA:.3f}" for part in parts), how]


def _step_table(steps: Sequence[StepTime]) -> str:
    compiled = any(step.compiler_seconds is not None for step in steps)
    # Without experts every step reads the same weights.
    differ = len({step.weights_bytes for step in steps}) > 1
    shared = any(step.exchange_seconds for step in steps)
    header = ["rows", "most per sample", "for", *["GB of weights read"] * differ]
    header += ["ms, counted", "limited by", *["ms, by the compiler"] * compiled]
    header += ["of these exchanges"] * shared
    return table(header, [_step_row(step, differ, compiled, shared) for step in steps])


def _step_row(step: StepTime, differ: bool, compiled: bool, shared: bool) -> list[str]:
    row = [str(step.rung.capacity), str(step.rung.max_q_len), step.purpose]
    row += [f"{step.weights_bytes / GIGA:.2f}"] * differ
    row += [milliseconds(step.seconds), step.bound]
    row += [milliseconds(step.compiler_seconds)] * compiled
    return row + [milliseconds(step.exchange_seconds)] * shared


def _speedup_table(forecast: Forecast) -> str:
    fixed = f"fixed {forecast.setting.draft_length}"
    header = ["batch", "planned", "drafted, mean", fixed]
    compiled = any(each.by_compiler is not None for each in forecast.speedups)
    if compiled:
        header += ["by the compiler: planned", "drafted, mean", fixed]
    return table(header, [_speedup_row(each, compiled) for each in forecast.speedups])


def _acceptance_table(forecast: Forecast) -> str:
    acceptances = [f"{acceptance:g}" for acceptance, _ in forecast.speedups[0].by_acceptance]
    rows = [
        [str(each.num_slots), *(f"{speedup.planned:.2f}" for _, speedup in each.by_acceptance)]
        for each in forecast.speedups
    ]
    return table(["batch", *acceptances], rows)


def _speedup_row(at: BatchSpeedup, compiled: bool) -> list[str]:
    row = [str(at.num_slots), *_speedup_cells(at.estimated)]
    return row + _speedup_cells(at.by_compiler) if compiled else row


def _speedup_cells(speedup: Speedup | None) -> list[str]:
    return [NOTHING] * 3 if speedup is None else [f"{value:.2f}" for value in speedup]


def explanation(forecasts: Iterable[Forecast]) -> str:
    """Returns remarks on what was compiled and how the rest was estimated, each remark once."""
    remarks = dict.fromkeys(line for each in forecasts for line in _remarks(each))
    return "\n".join(f"- {line}" for line in (*remarks, _LEFT_OUT))


def _remarks(forecast: Forecast) -> Iterator[str]:
    hardware, itemsize = forecast.setting.hardware, forecast.setting.itemsize
    memories = [memory for memory in (forecast.requested, forecast.largest) if memory]
    if any(memory.compiled for memory in memories):
        reported = "memory and cycles" if hardware.hertz else "memory"
        yield _COMPILED.format(compiler=COMPILERS[hardware.platform].name, reported=reported)
    else:
        yield _NOT_COMPILED
    if hardware.platform == "gpu":
        yield _GPU_MEMORY
    yield (
        f"Counted for {hardware.name}: the bytes and operations of a step, divided by "
        f"{BANDWIDTH_SHARE:.0%} of the published {hardware.bytes_per_second / GIGA:.0f} GB/s and "
        f"{COMPUTE_SHARE:.0%} of the published {hardware.rate(itemsize) / 1e12:.0f} TFLOP/s. These "
        "shares are assumptions."
    )
    if forecast.splits:
        yield from split_remarks(forecast)
    if forecast.setting.config.experts:
        yield _EXPERTS
    if any(step.compiler_seconds is not None for step in forecast.steps):
        yield (
            f"By the compiler for {hardware.name}: the cycles that the compiler expects, at "
            f"{hardware.hertz / 1e9:.2f} GHz. Its estimate leaves out attention, experts and "
            "exchanges between devices, which are counted."
        )


def overview(forecasts: Sequence[Forecast]) -> str:
    """Returns a Markdown table with a row for each forecast, and remarks."""
    header = ["model", "device", "batch", "fits", "GB needed", "largest batch"]
    header += ["at batch", "plain step, ms", "speedup planned", "fixed"]
    header += ["by the compiler: ms", "planned", "fixed"]
    rows = table(header, [_overview_row(each) for each in forecasts])
    split = next((overview_remark(each) for each in forecasts if each.splits), "")
    assumed = split + "\n".join(dict.fromkeys(_assumed(each.setting) for each in forecasts))
    return f"{rows}\n\n{assumed}\n{explanation(forecasts)}"


def _assumed(setting: Setting) -> str:
    """Says which acceptance the speedups are for, and why many of them are the same."""
    most = sum(setting.acceptance**place for place in range(setting.draft_length + 1))
    return (
        "- Speedups are for draft tokens that are each accepted with probability "
        f"{setting.acceptance:g}, given that those before them are (--acceptance). A step with "
        f"{setting.draft_length} draft tokens then emits {most:.2f} tokens on average, so no "
        "speedup is larger."
    )


def _overview_row(forecast: Forecast) -> list[str]:
    setting = forecast.setting
    gigabytes = f"{forecast.requested.total / GIGA:.1f} of {forecast.usable_bytes / GIGA:.1f}"
    fits = "yes" if forecast.fits else "no"
    row = [setting.name, device_of(forecast), str(forecast.samples), fits, gigabytes]
    if forecast.largest is None:
        return [*row, "0", *[NOTHING] * 7]
    shown = forecast.shown.num_slots
    speedup = next(each for each in forecast.speedups if each.num_slots == shown)
    plain = forecast.steps[0]
    most = forecast.largest.num_slots * setting.replicas
    cells = [str(most), str(shown * setting.replicas), milliseconds(plain.seconds)]
    cells += _pair(speedup.estimated)
    return [*row, *cells, milliseconds(plain.compiler_seconds), *_pair(speedup.by_compiler)]


def _pair(speedup: Speedup | None) -> list[str]:
    if speedup is None:
        return [NOTHING] * 2
    return [f"{speedup.planned:.2f}", f"{speedup.fixed:.2f}"]
