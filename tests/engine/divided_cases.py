"""Cases for `test_divided.py`, which runs them in a process with eight devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from emsjax import LLM, SamplingParams
from emsjax.engine.devices import SAME, shared_by
from emsjax.errors import UserError
from emsjax.loading.build import shape_of_model
from emsjax.loading.load import load_model
from emsjax.sampling.choose import choose
from emsjax.sampling.divided import choose_divided
from emsjax.shapes import SHARDS
from tests import tiny
from tests.engine.collectives import check_no_copy_of_the_share, collectives
from tests.engine.setup import (
    EOS,
    expected,
    jobs,
    make_drafter,
    make_engine,
    oracle_model,
    run_all,
)
from tests.engine.switches import PLAIN
from tests.ladders import one_rung, two_rungs
from tests.models.logits import our_logits

SLOW = pytest.mark.slow
# Of a tiny model that eight devices can share, with fewer key/value heads than devices.
tiny.TINY["eight"] = ("llama", tiny.LLAMA_SIZES | {"num_attention_heads": 8, "head_dim": 8})


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    ("name", "drafter", "number"),
    [
        ("llama", "prompt-lookup", 2),
        ("llama3", "tree", 4),
        ("eight", "none", 8),
        *(
            pytest.param(*case, marks=SLOW)
            for case in (
                ("qwen2-mixed", "combined", 2),
                ("llama", "draft-model", 2),
                ("llama-tied", "own-layers", 2),
                ("gpt-oss", "prompt-lookup", 4),
            )
        ),
    ],
)
def test_texts_are_those_of_transformers(name: str, drafter: str, number: int):
    """Through three slots, so that slots are refilled and prompts are read beside other texts."""
    devices = shared_by(number)
    model = oracle_model(name, devices)
    # Every device has all of a draft model.
    drafts_for = oracle_model(name) if drafter == "draft-model" else model
    costs = None if drafter == "none" else 0.5
    chosen = make_drafter(drafts_for, drafter)
    engine = make_engine(model, chosen, 3, costs=costs, devices=devices, make=two_rungs)
    todo = jobs(8)
    results = run_all(engine, todo)
    for job, result in zip(todo, results, strict=True):
        alone = expected(name, tuple(job.prompt), 64, EOS)[: job.max_tokens]
        assert list(result.token_ids) == alone, f"prompt {job.key} of {len(job.prompt)} tokens"
    assert drafter == "none" or sum(r.metrics.drafted_tokens for r in results) > 0


def test_a_step_exchanges_two_sums_a_layer_and_one_choice():
    devices = shared_by(4)
    model = shape_of_model(PLAIN, jnp.dtype(jnp.float32), devices=devices)
    engine = make_engine(
        model, "prompt-lookup", 8, capacity=2048, costs=1.0, devices=devices, make=one_rung
    )
    compiled = engine.lower().compile()
    rows, width = engine.ladder[0].capacity, PLAIN.hidden_size
    assert collectives(compiled.as_text()) == {
        f"all-reduce f32[{rows},{width}]": 3,
        f"all-gather s32[4,2,{rows}]": 1,
    }
    check_no_copy_of_the_share(engine, compiled, "scatter")


def test_what_differs_between_devices_cannot_pass_for_the_same():
    def different() -> jax.Array:
        return jax.lax.axis_index(SHARDS)

    program = shared_by(2).program(different, (), SAME)
    with pytest.raises(ValueError, match="replicat"):
        program.lower()


@pytest.mark.parametrize("number", [2, 8])
def test_a_choice_from_parts_is_that_from_all_logits(number: int):
    rng = np.random.default_rng(number)
    vocab_size, part = 203, 128
    logits = rng.normal(size=(64, vocab_size)).astype(np.float32)
    logits[:16] = np.round(logits[:16])  # ties
    places = rng.integers(0, vocab_size, 64)
    for row, bad in ((16, np.nan), (17, np.inf), (18, -np.inf), (19, np.nan)):
        logits[row, places[row]] = bad
    logits[20] = -np.inf
    logits[19] = np.where(np.isnan(logits[19]), np.nan, -np.inf)
    padded = np.pad(logits, ((0, 0), (0, number * part - vocab_size)), constant_values=-np.inf)
    state: Any = dataclasses.make_dataclass("State", ["sampling"])(None)
    chosen = shared_by(number).program(
        lambda x: choose_divided(choose, vocab_size, x, None, state).tokens,  # type: ignore[arg-type]
        (PartitionSpec(None, SHARDS),),
        SAME,
    )(padded)
    alone = choose(jnp.asarray(logits), None, state).tokens  # type: ignore[arg-type]
    np.testing.assert_array_equal(chosen, alone)
    assert set(np.flatnonzero(np.asarray(alone) < 0)) == {16, 17, 19, 20}


FAST_FAMILIES = ("opt-350m", "olmo2")


def number_for(name: str) -> int:
    return 4 if name in ("gemma", "gpt-oss", "stablelm") else 2


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST_FAMILIES else SLOW) for n in tiny.TINY]
)
def test_logits_of_every_family(name: str):
    tokens = np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, (3, 40))
    devices = shared_by(number_for(name))
    divided = load_model(tiny.checkpoint(name), devices=devices).model
    alone = our_logits(oracle_model(name), tokens, 20)
    np.testing.assert_allclose(
        our_logits(divided, tokens, 20, devices), alone, atol=1e-4, rtol=1e-4
    )
    assert np.abs(alone).max() > 0.5


def text_of(devices: int, params: SamplingParams, **options: Any) -> list[list[int]]:
    llm = LLM(
        str(tiny.checkpoint("llama3")),
        max_batch_size=2,
        max_model_len=200,
        tensor_parallel_size=devices,
        planner=False,
        **options,
    )
    outputs = llm.generate([[7, 8, 9, 7, 8], [11], [20, 21, 22]], params, use_tqdm=False)
    return [[*o.outputs[0].token_ids] for o in outputs]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"quantize": "int8"}, marks=SLOW),
        pytest.param({"kv_dtype": "int8"}, marks=SLOW),
        pytest.param({"exact": True}, marks=SLOW),
    ],
    ids=str,
)
def test_greedy_text_of_other_engines_is_that_of_one_device(options: dict):
    params = SamplingParams(max_tokens=24)
    assert text_of(2, params, **options) == text_of(1, params, **options)


@SLOW
def test_sampled_text_is_that_of_one_device():
    params = SamplingParams(
        max_tokens=24, temperature=0.9, top_p=0.9, seed=3, repetition_penalty=1.1, logprobs=2
    )
    assert text_of(2, params) == text_of(1, params)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (9, "tensor_parallel_size=9 needs as many devices, and jax sees 8 devices; give at most 8"),
        (3, "tensor_parallel_size=3 does not divide .*, which has 4 query heads; give 1, 2 or 4"),
        (0, "tensor_parallel_size is 0; it must be a whole number, between 1"),
    ],
)
def test_what_is_refused(number: int, message: str):
    with pytest.raises(UserError, match=message):
        LLM(str(tiny.checkpoint("llama3")), tensor_parallel_size=number)
