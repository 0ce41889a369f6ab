"""A plan for machines."""

from typing import Any

from emsjax.costs.roofline import BANDWIDTH_SHARE, COMPUTE_SHARE
from emsjax.host.provenance import version_of
from emsjax.plan.answer import BatchSpeedup, Plan, StepTime
from emsjax.plan.memory import Memory


def record(plan: Plan) -> dict[str, Any]:
    """All of a plan: bytes, seconds, what is assumed; null for what the compiler did not say."""
    setting = plan.setting
    largest = plan.largest
    return {
        "model": setting.name,
        "topology": setting.topology,
        "device": setting.hardware.name,
        "dtype": setting.dtype,
        "batch_size": setting.num_slots,
        "max_model_len": setting.max_model_len,
        "context": setting.context,
        "acceptance": setting.acceptance,
        "draft_length": setting.draft_length,
        "fits": plan.fits,
        "usable_bytes": plan.usable_bytes,
        "memory": _memory(plan.wanted),
        "largest_batch_size": 0 if largest is None else largest.num_slots,
        "largest_memory": None if largest is None else _memory(largest),
        "step_batch_size": plan.shown.num_slots,
        "steps": [_step(step) for step in plan.steps],
        "speedups": [_speedups(each) for each in plan.speedups],
        "assumptions": {
            "bytes_per_second": setting.hardware.bytes_per_second,
            "flops": setting.hardware.rate(setting.itemsize),
            "bandwidth_share": BANDWIDTH_SHARE,
            "compute_share": COMPUTE_SHARE,
            "hertz": setting.hardware.hertz or None,
        },
        "versions": {name: version_of(name) for name in ("emsjax", "jax", "libtpu")},
    }


def _memory(memory: Memory) -> dict[str, Any]:
    return memory._asdict() | {"total": memory.total}


def _step(step: StepTime) -> dict[str, Any]:
    fields = step._asdict()
    return fields.pop("rung")._asdict() | fields


def _speedups(each: BatchSpeedup) -> dict[str, Any]:
    return {
        "batch_size": each.num_slots,
        "counted": each.estimated._asdict(),
        "by_compiler": each.by_compiler and each.by_compiler._asdict(),
    }
