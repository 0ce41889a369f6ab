"""Forecasts, compared with the program that the TPU compiler makes."""

from dataclasses import replace

import jax
import pytest

from emsjax.costs.hardware import HARDWARE
from emsjax.errors import UserError
from emsjax.loading.named import named_config
from emsjax.models.config import DecoderConfig
from emsjax.pallas_kernels import ahead
from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.gpu_targets import GPUS
from emsjax.plan.compiler import check_compiler
from emsjax.plan.cycles import StepCycles
from emsjax.plan.estimate import estimate
from emsjax.plan.forecast import _compiler_costs, make_forecast
from emsjax.plan.memory import Memory
from emsjax.plan.program import _engine, _too_large, compile_program, usable_bytes
from emsjax.plan.setting import Setting

SMALL = DecoderConfig(
    vocab_size=2048,
    hidden_size=512,
    intermediate_size=1024,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=128,
    max_positions=4096,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
)
REAL = (("opt-6.7b", "v6e"), ("llama-3-8b", "v5e"), ("smollm2-135m", "v5e"))


def setting(name: str = "small", topology: str = "v5e", slots: int = 2, length: int = 1000):
    return Setting(
        name=name,
        config=SMALL if name == "small" else named_config(name),
        topology=topology,
        hardware=HARDWARE[topology],
        num_slots=slots,
        max_model_len=length,
        context=length // 2,
        dtype="bfloat16",
        acceptance=0.7,
        draft_length=1,
    )


def test_an_int8_cache_and_its_scales_are_counted():
    asked = replace(setting(), quantize="int8", kv_dtype="int8")
    assert asked.numbers == "bfloat16 with int8 weights and int8 cache"
    assert estimate(asked).memory.cache == 4 * 2 * 1024 * (8 * 128 + 8 * 4)
    assert replace(setting(), kv_dtype="int8").numbers == "bfloat16 with int8 cache"


@pytest.mark.usefixtures("no_compile_cache")
def test_memory_is_the_compilers_and_agrees_with_the_estimate(monkeypatch: pytest.MonkeyPatch):
    compiled = []
    make = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda *given: compiled.append(make(*given)) or compiled[-1],
    )
    found, counted = compile_program(setting()), estimate(setting()).memory
    memory, said = found.memory, compiled[-1].memory_analysis()
    held = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    assert memory.compiled
    assert memory.total == held + said.temp_size_in_bytes + said.generated_code_size_in_bytes
    assert memory.cache == counted.cache == 4 * 2 * 1024 * 8 * 128 * 2
    assert memory.weights == counted.weights == 2 * parameters_by_hand()
    assert said.alias_size_in_bytes >= memory.cache
    # The compiler pads small arrays.
    assert counted.state <= memory.state <= counted.state + 100_000
    assert found.cycles is not None
    plain, *_, prompts = found.cycles.rungs
    assert 0 < plain < prompts


def parameters_by_hand() -> int:
    """Parameters of `SMALL`: per layer attention, two feed-forward matrices and two norms."""
    layer = 4 * 512 * 512 + 2 * 512 * 1024 + 2 * 512
    return 4 * layer + (2048 + 4096) * 512 + 512


def test_what_the_compiler_leaves_out_of_4_bit_weights_is_added():
    """It has no estimate for their kernel, which must read them."""
    asked = [setting(), replace(setting(), quantize="int4")]
    none = [(0,) * len(each.ladder()) for each in asked]
    nothing = [StepCycles(0, rungs, kernels=rungs) for rungs in none]
    programs = [
        estimate(each)._replace(cycles=none) for each, none in zip(asked, nothing, strict=True)
    ]
    plain, kept = map(_compiler_costs, asked, programs)
    assert not plain.rungs.any()
    weights = 4 * (4 * 512 * 512 + 2 * 512 * 1024)
    reading = (weights / 2 + weights / 128 * 4) / setting().hardware.bytes_per_second
    assert reading < kept.rungs[0] < 2 * reading
    assert kept.rungs[-1] > kept.rungs[0]


@pytest.mark.usefixtures("no_compile_cache")
def test_memory_of_a_rejected_program_is_read_from_the_error():
    """A model of thousands of layers does not fit."""
    large = replace(setting(), config=replace(SMALL, num_layers=4000))
    memory = compile_program(large).memory
    assert memory.total > usable_bytes(large)
    assert memory.total == pytest.approx(estimate(large).memory.total, rel=0.05)


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("... 17179869184 (16.00G) exceeds available HBM (15.75G)", 16 << 30),
        ("Used 15.77G of 15.75G hbm. Exceeded hbm capacity by 18.65M.", int(15.77 * 2**30)),
        ("Used 15.75G of 15.75G hbm. Exceeded hbm capacity by 1.65M.", int(15.75 * 2**30) + 1),
    ],
)
def test_compiler_errors_for_programs_that_do_not_fit(said: str, needed: int):
    counted = Memory(2, 1 << 30, 1 << 31, 0, 7, compiled=False)
    found = _too_large(counted, f"RESOURCE_EXHAUSTED: {said}")
    assert (found.total, found.compiled) == (needed, True)
    with pytest.raises(UserError, match=r"rejects the program \(RESOURCE"):
        _too_large(counted, "RESOURCE_EXHAUSTED: " + 1000 * "in other words ")


@pytest.mark.parametrize("topology", HARDWARE)
@pytest.mark.usefixtures("no_compile_cache")
def test_usable_memory_is_within_a_tenth_of_the_published(topology: str):
    usable = usable_bytes(setting(topology=topology))
    assert usable == pytest.approx(HARDWARE[topology].usable_bytes, rel=0.1)


def test_every_device_can_be_compiled_for():
    assert HARDWARE.keys() == ahead.TOPOLOGIES.keys() | GPUS.keys()
    for name, gpu in GPUS.items():
        assert HARDWARE[name].bytes_per_second == pytest.approx(gpu.bytes_per_second, rel=0.01)


def test_everything_is_estimated_without_a_compiler():
    forecast = make_forecast(setting("opt-6.7b", "h100", slots=8, length=2048), False, print)
    assert forecast.fits
    assert not forecast.requested.compiled
    assert forecast.usable_bytes == 60e9
    assert forecast.largest is not None
    with_one_more = estimate(forecast.setting.at(forecast.largest.num_slots + 1)).memory
    assert forecast.largest.total <= forecast.usable_bytes < with_one_more.total
    assert all(step.compiler_seconds is None for step in forecast.steps)
    assert [each.num_slots for each in forecast.speedups] == [
        1,
        4,
        8,
        16,
        forecast.largest.num_slots,
    ]


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("length", [300, 1024])
@pytest.mark.parametrize("topology", ["v5e", "h100"])
def test_cache_and_state_are_those_of_the_engine(topology: str, slots: int, length: int):
    counted = setting(topology=topology, slots=slots, length=length)
    counted = replace(counted, draft_length=5)
    with compiling_for(counted.platform):
        engine = _engine(counted, counted.ladder())
    held = jax.eval_shape(engine.empty)
    everything = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))
    memory = estimate(counted).memory
    assert memory.cache == held.cache.size * held.cache.dtype.itemsize
    assert memory.state == everything - memory.cache


def test_the_largest_batch_is_shown_if_the_requested_one_does_not_fit():
    forecast = make_forecast(setting("opt-6.7b", "h100", slots=500, length=2048), False, print)
    assert not forecast.fits
    assert forecast.largest is not None
    assert forecast.shown.num_slots == forecast.largest.num_slots < 500


def test_a_model_too_large_for_one_sample():
    forecast = make_forecast(setting("llama-3-70b", "h100"), False, print)
    assert (forecast.fits, forecast.largest, forecast.steps, forecast.speedups) == (
        False,
        None,
        (),
        (),
    )


def test_a_topology_that_the_compiler_does_not_know(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ahead.TOPOLOGIES, "v5e", "v99:2x2")
    with pytest.raises(UserError, match=r"does not know TPU v5e \(.*v99.*\); pip install"):
        check_compiler("v5e")


@pytest.mark.slow
@pytest.mark.usefixtures("no_compile_cache")
@pytest.mark.parametrize(("name", "topology"), REAL)
def test_estimates_of_real_models(name: str, topology: str):
    """Estimates agree with the compiler, except for temporaries, which are small."""
    requested = setting(name, topology, slots=1, length=2048)
    counted, memory = estimate(requested).memory, compile_program(requested).memory
    held, known = (each.total - each.temporaries for each in (memory, counted))
    # A TPU pads each of SmolLM2's 576 columns of weights to 640.
    assert held == pytest.approx(known, rel=0.1 if name == "smollm2-135m" else 0.02)
    assert memory.temporaries < 0.02 * usable_bytes(requested)
    assert memory.total <= usable_bytes(requested)


@pytest.mark.slow
@pytest.mark.usefixtures("no_compile_cache")
def test_one_more_sample_than_the_largest_batch_does_not_fit():
    forecast = make_forecast(setting("opt-6.7b", slots=1, length=2048), True, print)
    assert forecast.largest is not None
    assert forecast.largest.compiled
    one_more = forecast.setting.at(forecast.largest.num_slots + 1)
    assert compile_program(one_more).memory.total > forecast.usable_bytes
