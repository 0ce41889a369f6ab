"""With `exact` (one capacity), output equals that of plain decoding alone, bit for bit."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from emsjax.engine.ladder import make_ladder
from emsjax.engine.packing import pack
from tests.engine.setup import jobs, make_engine, run_all, tiny_model


def in_dtype(name: str, dtype: jnp.dtype):
    graphdef, weights = nnx.split(tiny_model(name))
    model = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(dtype), weights))
    model.dtype = jnp.dtype(dtype)
    return model


@pytest.mark.parametrize(
    ("name", "dtype", "drafter"),
    [
        ("llama", jnp.float32, "prompt-lookup"),
        ("llama", jnp.bfloat16, "prompt-lookup"),
        ("llama", jnp.float16, "prompt-lookup"),
        ("llama", jnp.bfloat16, "itself"),
        ("llama", jnp.bfloat16, "combined-own-layers"),
        ("gpt-oss", jnp.bfloat16, "prompt-lookup"),  # experts, and sinks and windows
    ],
)
def test_speculation_in_a_batch_equals_plain_decoding_alone(
    name: str, dtype: jnp.dtype, drafter: str
):
    model = in_dtype(name, dtype)
    todo = jobs(8, longest=100)
    batched = run_all(make_engine(model, drafter, 3, exact=True), todo)
    alone = run_all(make_engine(model, "none", 1, exact=True), todo)
    assert [r.token_ids for r in batched] == [r.token_ids for r in alone]
    assert sum(r.metrics.accepted_tokens for r in batched) > 0


@pytest.mark.parametrize("method", ["vanilla", "unpad-kv"])
def test_padding_of_many_slots_fits_the_one_capacity(method: str):
    """Whole drafts of 12 slots would not fit once padded."""
    model, todo = tiny_model("llama3"), jobs(12, longest=40)
    padded = make_engine(model, "prompt-lookup", 12, exact=True, method=method)
    plain = make_engine(model, "none", 12, exact=True)
    assert [r.token_ids for r in run_all(padded, todo)] == [
        r.token_ids for r in run_all(plain, todo)
    ]


def with_near_ties(name: str, dtype: jnp.dtype):
    """Makes every second token almost equal to its neighbour: the last bit of a logit decides."""
    model = in_dtype(name, dtype)
    head = model.head.kernel[...]
    noise = 1 + 3e-8 * jax.random.normal(jax.random.key(0), head[1::2].shape)
    model.head.kernel[...] = head.at[1::2].set(
        (head[:-1:2] * noise[: len(head[:-1:2])]).astype(dtype)
    )
    return model


@pytest.mark.parametrize(("drafter", "num_slots"), [("prompt-lookup", 1), ("none", 3)])
def test_the_last_bit_of_a_logit_is_the_same(drafter: str, num_slots: int):
    model = with_near_ties("llama", jnp.float32)
    todo = jobs(6, longest=60)
    batched = run_all(make_engine(model, drafter, num_slots, exact=True), todo)
    alone = run_all(make_engine(model, "none", 1, exact=True), todo)
    assert [r.token_ids for r in batched] == [r.token_ids for r in alone]


def test_the_ladder_gives_the_same_text_without_near_ties():
    model = tiny_model("llama")
    todo = jobs(8, longest=100)
    exact = run_all(make_engine(model, "prompt-lookup", 3, exact=True), todo)
    laddered = run_all(make_engine(model, "prompt-lookup", 3, make=make_ladder), todo)
    assert [r.token_ids for r in exact] == [r.token_ids for r in laddered]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["llama3", "qwen3-moe"])
def test_hidden_states_do_not_depend_on_the_other_rows(name: str, dtype: jnp.dtype):
    """The same rows give the same bits alone, among others, and in another slot and place."""
    model = in_dtype(name, dtype)
    graphdef, weights = nnx.split(model)
    spec = model.cache_spec(4, 256)
    tokens = jax.random.randint(jax.random.key(0), (4, 256), 3, 101, jnp.int32)
    tokens = tokens.at[2].set(tokens[1])

    @jax.jit
    def forward(q_lens: jax.Array) -> jax.Array:
        cache = jnp.zeros(spec.shape, spec.dtype)
        batch = pack(tokens, jnp.zeros(4, jnp.int32), q_lens, 64)
        return nnx.merge(graphdef, weights)(batch, cache, max_q_len=64)[0]

    alone = forward(jnp.asarray([0, 20, 0, 0], jnp.int32))[:20]
    crowded = forward(jnp.asarray([13, 20, 0, 31], jnp.int32))[13:33]
    elsewhere = forward(jnp.asarray([7, 0, 20, 1], jnp.int32))[7:27]
    assert (alone == crowded).all()
    assert (alone == elsewhere).all()
    assert make_ladder(1, 7, exact=True) == make_ladder(8, 7, exact=True)
