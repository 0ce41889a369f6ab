"""Plans for people: the details of one, or a line each of several."""

from collections.abc import Iterable, Iterator, Sequence

from emsjax.cli.markdown import table
from emsjax.costs.roofline import BANDWIDTH_SHARE, COMPUTE_SHARE
from emsjax.plan.answer import BatchSpeedup, Plan, StepTime
from emsjax.plan.memory import Memory
from emsjax.plan.speedup import Speedup

NOTHING = "-"
_GIGA = 1e9
_COMPILED = (
    "Compiled: the decode program of greedy batches, by the TPU compiler. Memory and cycles are what "  # noqa: E501
    "it says. Nothing ran."
)
_NOT_COMPILED = "Where nothing was compiled memory is counted; temporaries are what logits and activations take."  # noqa: E501
_GPU_MEMORY = "Of a GPU's memory jax takes three quarters unless told otherwise."
_LEFT_OUT = (
    "Speedups leave out reading prompts, and what drafting costs: looking up costs next to nothing, "  # noqa: E501
    "a draft model does not."
)


def details(plan: Plan) -> str:
    """All of one plan, as Markdown."""
    setting = plan.setting
    title = (
        f"{setting.name} in {setting.dtype} on one {setting.hardware.name}: {setting.num_slots} "
        f"samples of {setting.max_model_len} tokens"
    )
    shown = plan.shown
    step = (
        f"A step of {shown.num_slots} samples with {shown.context} tokens each in the cache, "
        "by how many rows it has:"
    )
    speedup = (
        f"Speedup over plain decoding if each draft token is right with probability "
        f"{setting.acceptance:g} where those before it are:"
    )
    parts = [title, _verdict(plan), _memory_table(plan)]
    if plan.largest is not None:
        parts += [step, _step_table(plan.steps), speedup, _speedup_table(plan)]
    return "\n\n".join([*parts, explanation([plan])])


def _verdict(plan: Plan) -> str:
    needed, there = (f"{x / _GIGA:.2f} GB" for x in (plan.wanted.total, plan.usable_bytes))
    answer = f"It fits: {needed} of" if plan.fits else f"It does not fit: {needed}, and there are"
    if plan.largest is None:
        return f"{answer} {there}. Not even one sample of this length does."
    return f"{answer} {there}. The largest batch that fits is {plan.largest.num_slots}."


def _memory_table(plan: Plan) -> str:
    memories = {each.num_slots: each for each in (plan.wanted, plan.largest) if each}
    header = ["memory, GB", "weights", "cache", "state", "temporaries", "all", ""]
    return table(header, [_memory_row(each) for each in memories.values()])


def _memory_row(memory: Memory) -> list[str]:
    parts = (memory.weights, memory.cache, memory.state, memory.temporaries, memory.total)
    how = "compiled" if memory.compiled else "counted"
    return [f"batch {memory.num_slots}", *(f"{part / _GIGA:.3f}" for part in parts), how]


def _step_table(steps: Sequence[StepTime]) -> str:
    header = ["rows", "most of a sample", "for", "ms, counted", "bound by"]
    compiled = any(step.compiler_seconds is not None for step in steps)
    return table(
        header + ["ms, by the compiler"] * compiled, [_step_row(s, compiled) for s in steps]
    )


def _step_row(step: StepTime, compiled: bool) -> list[str]:
    row = [str(step.rung.capacity), str(step.rung.max_q_len), step.purpose]
    row += [milliseconds(step.seconds), step.bound]
    return row + [milliseconds(step.compiler_seconds)] * compiled


def _speedup_table(plan: Plan) -> str:
    fixed = f"fixed {plan.setting.draft_length}"
    header = ["batch", "planned", "drafted, mean", fixed]
    compiled = any(each.by_compiler is not None for each in plan.speedups)
    if compiled:
        header += ["by the compiler: planned", "drafted, mean", fixed]
    return table(header, [_speedup_row(each, compiled) for each in plan.speedups])


def _speedup_row(at: BatchSpeedup, compiled: bool) -> list[str]:
    row = [str(at.num_slots), *_speedup_cells(at.estimated)]
    return row + _speedup_cells(at.by_compiler) if compiled else row


def _speedup_cells(speedup: Speedup | None) -> list[str]:
    return [NOTHING] * 3 if speedup is None else [f"{value:.2f}" for value in speedup]


def explanation(plans: Iterable[Plan]) -> str:
    """What was compiled, and how the rest was estimated; each remark once."""
    remarks = dict.fromkeys(line for plan in plans for line in _remarks(plan))
    return "\n".join(f"- {line}" for line in (*remarks, _LEFT_OUT))


def _remarks(plan: Plan) -> Iterator[str]:
    hardware, itemsize = plan.setting.hardware, plan.setting.itemsize
    memories = [memory for memory in (plan.wanted, plan.largest) if memory]
    yield _COMPILED if any(memory.compiled for memory in memories) else _NOT_COMPILED
    if not hardware.is_tpu:
        yield _GPU_MEMORY
    yield (
        f"Counted for {hardware.name}: bytes and operations of a step over the published "
        f"{hardware.bytes_per_second / _GIGA:.0f} GB/s and {hardware.rate(itemsize) / 1e12:.0f} "
        f"TFLOP/s, of which {BANDWIDTH_SHARE:.0%} and {COMPUTE_SHARE:.0%} are assumed to be reached."  # noqa: E501
    )
    if any(step.compiler_seconds is not None for step in plan.steps):
        yield (
            f"By the compiler for {hardware.name}: the cycles it expects, at "
            f"{hardware.hertz / 1e9:.2f} GHz; attention is not among them and is counted."
        )


def overview(plans: Sequence[Plan]) -> str:
    """A line for each plan in a Markdown table, and what it says."""
    header = ["model", "device", "batch", "fits", "GB needed", "largest batch"]
    header += ["at batch", "plain step, ms", "speedup planned", "fixed"]
    header += ["by the compiler: ms", "planned", "fixed"]
    rows = table(header, [_overview_row(plan) for plan in plans])
    return f"{rows}\n\n{explanation(plans)}"


def _overview_row(plan: Plan) -> list[str]:
    asked = plan.setting
    gigabytes = f"{plan.wanted.total / _GIGA:.1f} of {plan.usable_bytes / _GIGA:.1f}"
    fits = "yes" if plan.fits else "no"
    row = [asked.name, asked.hardware.name, str(asked.num_slots), fits, gigabytes]
    if plan.largest is None:
        return [*row, "0", *[NOTHING] * 7]
    shown = plan.shown.num_slots
    speedup = next(each for each in plan.speedups if each.num_slots == shown)
    plain = plan.steps[0]
    cells = [str(plan.largest.num_slots), str(shown), milliseconds(plain.seconds)]
    cells += _pair(speedup.estimated)
    return [*row, *cells, milliseconds(plain.compiler_seconds), *_pair(speedup.by_compiler)]


def _pair(speedup: Speedup | None) -> list[str]:
    if speedup is None:
        return [NOTHING] * 2
    return [f"{speedup.planned:.2f}", f"{speedup.fixed:.2f}"]


def milliseconds(seconds: float | None) -> str:
    """Three digits of them."""
    return NOTHING if seconds is None else f"{seconds * 1e3:.3g}"
