"""The sizes of models and the costs of steps, compared with counts by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.costs.hardware import HARDWARE, hardware_like
from emsjax.costs.roofline import (
    BANDWIDTH_SHARE,
    COMPUTE_SHARE,
    attended,
    estimated_costs,
)
from emsjax.engine.ladder import Rung
from emsjax.engine.sizes import Exchange, Sizes
from emsjax.engine.step_costs import Passes, StepCosts
from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config
from emsjax.pallas_kernels.backends import compiling_for

LADDER = (Rung(8, 1), Rung(64, 8), Rung(4096, 4096))


def sizes(name: str, dtype: str = "bfloat16", platform: str = "tpu") -> Sizes:
    with compiling_for(platform):
        return shape_of_model(named_config(name), jnp.dtype(dtype)).sizes


def test_sizes_of_a_tied_model():
    found = sizes("opt-6.7b")
    everything, positions, vocabulary = 6_658_473_984, 2050 * 4096, 50272 * 4096
    assert found.weights_bytes == 2 * everything
    assert found.read_bytes == 2 * (everything - positions)
    # All but the tables and the last norm.
    assert found.row_flops == 2 * (everything - positions - vocabulary - 2 * 4096)
    assert found.logit_flops == 2 * vocabulary
    assert found.token_bytes == 32 * 2 * 32 * 128 * 2
    assert found.token_flops == 4 * 32 * 32 * 128


def test_an_untied_model_does_not_read_its_embedding():
    found = sizes("llama-3-8b", "float32")
    assert found.weights_bytes - found.read_bytes == 4 * 128256 * 4096
    assert found.itemsize == 4


def test_more_rows_read_more_experts():
    found = sizes("qwen3-30b-a3b")
    of_experts = 48 * 128 * 3 * 2048 * 768
    assert found.expert_bytes == 2 * of_experts
    assert found.weights_bytes == 2 * 30_532_122_624
    tables = 2 * 151936 * 2048 + 2048
    assert found.row_flops == 2 * (30_532_122_624 - tables - of_experts * 15 // 16)
    for rows, share in ((1, 1 / 16), (2, 1 - (15 / 16) ** 2), (10_000, 1)):
        read = found.read_bytes + share * found.expert_bytes
        assert found.step_bytes(rows) == pytest.approx(read)
    few = estimated_costs(found, HARDWARE["v5e"], LADDER, num_slots=2, draft_length=7).rungs
    read = [found.step_bytes(2), found.step_bytes(16)]  # unused rows choose no experts
    np.testing.assert_allclose(few[:2] * 819e9 * BANDWIDTH_SHARE, read, rtol=1e-6)
    counted = [rung * 819e9 * BANDWIDTH_SHARE for rung in costs("qwen3-30b-a3b").rungs[:2]]
    np.testing.assert_allclose(counted, [found.step_bytes(8), found.step_bytes(64)], rtol=1e-6)


def test_the_cache_is_as_wide_as_the_platform_lays_it_out():
    """A token of SmolLM2 takes 3 rows of 128, and 4 on a TPU."""
    assert sizes("smollm2-135m", platform="gpu").token_bytes == 30 * 3 * 128 * 2
    assert sizes("smollm2-135m", platform="tpu").token_bytes == 30 * 4 * 128 * 2


def costs(name: str, dtype: str = "bfloat16") -> StepCosts:
    return estimated_costs(sizes(name, dtype), HARDWARE["v5e"], LADDER, num_slots=8, draft_length=7)


def test_a_step_costs_the_longer_of_reading_and_multiplying():
    found, counted = costs("opt-6.7b"), sizes("opt-6.7b")
    reading = counted.read_bytes / (819e9 * BANDWIDTH_SHARE)
    operations = 4096 * counted.row_flops + 8 * 8 * counted.logit_flops
    computing = operations / (197e12 * COMPUTE_SHARE)
    np.testing.assert_allclose(found.rungs, [reading, reading, computing], rtol=1e-6)


def test_a_cached_token_is_read_once_and_multiplied_with_the_rows_of_its_slot():
    found, counted = costs("llama-3-8b"), sizes("llama-3-8b")
    reading = counted.token_bytes / (819e9 * BANDWIDTH_SHARE)
    computing = 512 * counted.token_flops / (197e12 * COMPUTE_SHARE)
    np.testing.assert_allclose(found.cached, [reading, reading, computing], rtol=1e-6)


def test_a_pass_of_drafting_reads_its_weights_and_the_text_that_it_sees():
    """With few rows a pass takes as long as reading, with many as long as multiplying."""
    counted, size, share = sizes("llama-3-8b"), 8, 10**9
    for passes in (Passes(7), Passes(15, 15, rows=64), Passes(7, tokens=516)):
        found = estimated_costs(
            counted,
            HARDWARE["v5e"],
            LADDER,
            num_slots=size,
            draft_length=7,
            drafter_bytes=share,
            passes=passes,
        ).draft
        reading = (share + size * passes.tokens * counted.token_bytes) / (819e9 * BANDWIDTH_SHARE)
        computing = 2 * size * passes.rows * (share / 2) / (197e12 * COMPUTE_SHARE)
        assert found == pytest.approx(max(reading, computing))
        assert (computing > reading) == (passes.rows == 64)


def test_what_a_head_reads_of_every_step_is_part_of_the_step():
    counted, head = sizes("llama-3-8b"), 10**9
    without, found = (
        estimated_costs(
            *(counted, HARDWARE["v5e"], LADDER),
            num_slots=8,
            draft_length=7,
            passes=Passes(7, observing=observing),
        )
        for observing in (0, head)
    )
    reading = head / (819e9 * BANDWIDTH_SHARE)
    computing = 4096 * head / (197e12 * COMPUTE_SHARE)
    more = found.rungs - without.rungs
    np.testing.assert_allclose(more, [reading, reading, computing], rtol=1e-4)
    assert found.draft == without.draft


def test_a_pass_of_drafting_waits_for_what_devices_exchange():
    """Eight chips add up the rows of a pass, one a slot, 64 times in a ring."""
    counted = sizes("llama-3-8b")._replace(devices=8)
    alone, shared = (
        estimated_costs(
            counted,
            HARDWARE["v5e"],
            LADDER,
            num_slots=8,
            draft_length=7,
            drafter_bytes=10**9,
            passes=Passes(7, exchanges=exchanges),
        ).draft
        for exchanges in ((), (Exchange(64, 8192),))
    )
    seconds = 64 * (14e-6 + 2 * 7 / 8 * 8 * 8192 / 80e9)
    assert shared - alone == pytest.approx(seconds, rel=1e-3)


def test_float32_doubles_the_reads_and_slows_the_products():
    ratio = np.asarray(costs("opt-6.7b", "float32").rungs) / np.asarray(costs("opt-6.7b").rungs)
    assert ratio[0] == pytest.approx(2)
    assert ratio[2] == pytest.approx(6)


def test_a_processor_takes_as_long_as_was_measured():
    """Two cores of an AMD EPYC (Zen 4), tables of costs from batches of 1, 8 and 16 samples."""
    measured = {1: 18.3, 8: 19.4, 16: 23.4, 32: 36.5, 64: 58.0, 128: 106.0}
    ladder = [Rung(rows, 8) for rows in measured]
    found = sizes("smollm2-135m", "float32", "cpu")
    processor = hardware_like("cpu", "cpu")
    for slots in (1, 16):
        costs = estimated_costs(found, processor, ladder, num_slots=slots, draft_length=7)
        fits = np.asarray([rung.capacity >= slots for rung in ladder])
        rows = np.minimum([*measured], 8 * slots)
        enough = fits & (rows == [*measured])
        seconds = 1e-3 * np.asarray([*measured.values()])
        np.testing.assert_allclose(costs.rungs[enough], seconds[enough], rtol=0.1)


def test_a_layer_reads_no_more_than_its_window():
    assert attended((), 1000) == 1000
    assert attended((0, 100), 1000) == 550
    assert attended((0, 100), 50) == 50
