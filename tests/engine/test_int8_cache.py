"""Decoding with an int8 cache: drafts, batches and shared prompts leave every token as it is."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.job import Job
from emsjax.loading.load import load_model
from emsjax.pallas_kernels.int8_cache import Int8Cache
from tests.engine.setup import jobs, make_engine, run_all, tiny_model
from tests.engine.test_exact import in_dtype
from tests.tiny import checkpoint

LONG = 2000


def with_int8_cache(model):
    graphdef, weights = nnx.split(model)
    model = nnx.merge(graphdef, weights)
    model.kv_dtype = "int8"
    return model


@pytest.mark.parametrize(
    ("dtype", "drafter"), [(jnp.float32, "prompt-lookup"), (jnp.bfloat16, "itself")]
)
def test_speculation_in_a_batch_equals_plain_decoding_alone(dtype: jnp.dtype, drafter: str):
    model = with_int8_cache(in_dtype("llama", dtype))
    todo = jobs(8, longest=100)
    engine = make_engine(model, drafter, 3, exact=True)
    assert isinstance(engine.empty().cache, Int8Cache)
    batched = run_all(engine, todo)
    alone = run_all(make_engine(model, "none", 1, exact=True), todo)
    assert [r.token_ids for r in batched] == [r.token_ids for r in alone]
    assert sum(r.metrics.accepted_tokens for r in batched) > 0


def test_a_shared_prompt_brings_its_scales():
    model, group = with_int8_cache(tiny_model("llama")), object()
    shared = [Job(n, [5, 6, 7] * 60, 8, group=group) for n in range(3)]
    engine = make_engine(model, "none", 2, exact=True)
    first, *others = run_all(engine, shared)
    assert first.metrics.prefill_steps > others[0].metrics.prefill_steps
    assert all(r.token_ids == first.token_ids for r in others)


@pytest.mark.slow
def test_exact_over_two_thousand_tokens_with_int8_weights_and_cache():
    model = load_model(checkpoint("llama"), quantize="int8", kv_dtype="int8").model
    prompt = np.resize(np.arange(3, 23), 100).tolist()
    todo = [Job(0, prompt, LONG, ())]
    texts = []
    for drafter in ("prompt-lookup", "none"):
        engine = make_engine(model, drafter, 1, capacity=2304, exact=True)
        texts.append(run_all(engine, todo)[0].token_ids)
    assert len(texts[0]) == LONG
    assert texts[0] == texts[1]
