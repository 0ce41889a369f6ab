"""Converts a forecast to JSON values."""

from typing import Any

from emsjax.costs.roofline import BANDWIDTH_SHARE, COMPUTE_SHARE
from emsjax.host.provenance import version_of
from emsjax.plan.compiler import COMPILERS
from emsjax.plan.forecast import BatchSpeedup, Forecast, StepTime
from emsjax.plan.memory import Memory
from emsjax.plan.splits import Split

_PACKAGES = ("emsjax", "jax", *(compiler.package for compiler in COMPILERS.values()))


def record(forecast: Forecast) -> dict[str, Any]:
    """Returns a whole forecast, in bytes and seconds, with its assumptions.

    Batch sizes are those of one replica, samples those of all; memory is that of one device.
    Compiler figures are None if nothing was compiled.
    """
    setting = forecast.setting
    largest = forecast.largest
    return {
        "model": setting.name,
        "topology": setting.devices.name,
        "device": setting.hardware.name,
        "dtype": setting.dtype,
        "quantize": setting.quantize,
        "kv_dtype": setting.kv_dtype,
        "devices": setting.devices.number,
        "replicas": setting.replicas,
        "tensor_parallel": setting.shards,
        "samples": forecast.samples,
        "batch_size": setting.num_slots,
        "max_model_len": setting.max_model_len,
        "context": setting.context,
        "acceptance": setting.acceptance,
        "draft_length": setting.draft_length,
        "fits": forecast.fits,
        "usable_bytes": forecast.usable_bytes,
        "memory": _memory(forecast.requested),
        "largest_batch_size": 0 if largest is None else largest.num_slots,
        "largest_memory": None if largest is None else _memory(largest),
        "step_batch_size": forecast.shown.num_slots,
        "steps": [_step(step) for step in forecast.steps],
        "speedups": [_speedups(each) for each in forecast.speedups],
        "splits": [_split(each) for each in forecast.splits],
        "assumptions": {
            "bytes_per_second": setting.hardware.bytes_per_second,
            "flops": setting.hardware.rate(setting.itemsize),
            "bandwidth_share": BANDWIDTH_SHARE,
            "compute_share": COMPUTE_SHARE,
            "hertz": setting.hardware.hertz or None,
            "link": setting.hardware.link and setting.hardware.link._asdict(),
        },
        "versions": {name: version_of(name) for name in _PACKAGES},
    }


def _memory(memory: Memory) -> dict[str, Any]:
    return memory._asdict() | {"total": memory.total}


def _step(step: StepTime) -> dict[str, Any]:
    fields = step._asdict()
    return fields.pop("rung")._asdict() | fields


def _split(each: Split) -> dict[str, Any]:
    fields = {name: getattr(each, name) for name in ("plain_seconds", "plain_rate", "planned_rate")}
    return {
        "replicas": each.setting.replicas,
        "tensor_parallel": each.setting.shards,
        "batch_size": each.setting.num_slots,
        "fits": each.fits,
        "memory": _memory(each.memory),
        "largest_samples": each.largest,
        **fields,
    }


def _speedups(each: BatchSpeedup) -> dict[str, Any]:
    return {
        "batch_size": each.num_slots,
        "counted": each.estimated._asdict(),
        "by_compiler": each.by_compiler and each.by_compiler._asdict(),
        "by_acceptance": [
            {"acceptance": acceptance, **speedup._asdict()}
            for acceptance, speedup in each.by_acceptance
        ],
    }
