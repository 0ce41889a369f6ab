"""Temperature, top-k, top-p and min-p work as in `transformers`."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.sampling import filters as module
from emsjax.sampling.blocks import first_max, has_maximum
from emsjax.sampling.filters import Filters, keep, scale
from emsjax.sampling.vocabulary import WHOLE

WIDTHS = (5, 101, 1000)
ROWS = 4


@st.composite
def rows(draw) -> tuple[np.ndarray, list[dict]]:
    """Draws flat or peaked logits, and the settings of each row."""
    width = draw(st.sampled_from(WIDTHS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from((0.01, 1.0, 5.0)))
    settings = st.fixed_dictionaries(
        {
            "temperature": st.floats(0.3, 1.5),
            "top_k": st.sampled_from((0, 1, 2, 50, 127, 128, 129, 999, 5000)),
            "top_p": st.sampled_from((1.0, 0.999, 0.9, 0.5, 0.05)),
            "min_p": st.sampled_from((0.0, 0.01, 0.3, 1.0)),
        }
    )
    logits = (rng.normal(size=(ROWS, width)) * spread).astype(np.float32)
    return logits, draw(st.lists(settings, min_size=ROWS, max_size=ROWS))


@jax.jit
def kept(logits: jax.Array, temperature: jax.Array, filters: Filters) -> jax.Array:
    return jax.nn.softmax(keep(scale(logits, temperature), filters), axis=1)


def ours(logits: np.ndarray, wanted: list[dict]) -> np.ndarray:
    def column(name: str, dtype: type) -> np.ndarray:
        return np.asarray([row[name] for row in wanted], dtype)

    filters = Filters(
        column("top_k", np.int32), *(column(n, np.float32) for n in Filters._fields[1:])
    )
    return np.asarray(kept(logits, column("temperature", np.float32), filters))


def theirs(logits: np.ndarray, row: dict) -> np.ndarray:
    """Returns the probabilities of one row as filtered by `transformers`."""
    import torch
    from transformers import generation

    scores = torch.tensor(logits[None])
    chain = [generation.TemperatureLogitsWarper(row["temperature"])]
    if row["top_k"]:
        chain.append(generation.TopKLogitsWarper(row["top_k"]))
    if row["top_p"] < 1:
        chain.append(generation.TopPLogitsWarper(row["top_p"]))
    if row["min_p"]:
        chain.append(generation.MinPLogitsWarper(row["min_p"]))
    for warper in chain:
        scores = warper(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


@settings(max_examples=150)
@given(rows())
def test_as_in_transformers(drawn):
    pytest.importorskip("torch")
    logits, wanted = drawn
    for found, row, asked in zip(ours(logits, wanted), logits, wanted, strict=True):
        np.testing.assert_allclose(found, theirs(row, asked), atol=1e-5, rtol=0)


@settings(max_examples=50)
@given(rows())
def test_a_row_does_not_depend_on_its_neighbours(drawn):
    """This holds whichever path the neighbours take: halving or the likeliest candidates."""
    logits, wanted = drawn
    together = ours(logits, wanted)
    calm = [wanted[0]] + [dict(wanted[0], top_k=1)] * (ROWS - 1)
    alone = ours(np.repeat(logits[:1], ROWS, axis=0), calm)
    np.testing.assert_array_equal(alone[0], together[0])


@jax.jit
def both_ways(weights: jax.Array, filters: Filters) -> tuple[jax.Array, jax.Array]:
    return module._among_candidates(weights, filters), module._by_halving(weights, filters)


@settings(max_examples=50)
@given(rows())
def test_both_ways_find_the_same_threshold(drawn):
    """They may differ by one token at the border, if sums differ in the last bit."""
    weights = np.exp(np.asarray(scale(jnp.asarray(drawn[0]), jnp.ones(ROWS))))
    for k, p in ((3, 1.0), (50, 0.9), (1, 0.5)):
        top_p, min_p = np.full(ROWS, p, np.float32), np.zeros(ROWS, np.float32)
        found = both_ways(weights, Filters(np.full(ROWS, k, np.int32), top_p, min_p))
        if p == 1.0:
            np.testing.assert_array_equal(*found)
        few, halved = ((weights >= t[:, None]).sum(1) for t in found)
        assert (abs(few - halved) <= 1).all()


def test_ties_with_the_last_kept_token_are_kept():
    logits = np.zeros((ROWS, 101), np.float32)
    wanted = [{"temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.5}] * ROWS
    np.testing.assert_allclose(ours(logits, wanted), 1 / 101, rtol=1e-6)


def test_large_logits_and_small_temperatures_do_not_overflow():
    logits = np.asarray([[3e38, -3e38, 1e38, 0], [-3e38, 0, 1, 2]] * 2, np.float32)
    wanted = [{"temperature": 1e-3, "top_k": 0, "top_p": 0.9, "min_p": 0.1}] * ROWS
    found = ours(logits, wanted)
    np.testing.assert_array_equal(found, np.eye(4)[[0, 3, 0, 3]])


@pytest.mark.parametrize("width", [1, 5, 127, 128, 129, 1000])
def test_first_max_is_argmax(width: int):
    rng = np.random.default_rng(width)
    few_values = rng.integers(0, 4, (50, width)).astype(np.float32)
    forbidden = np.where(rng.random((50, width)) < 0.5, -np.inf, few_values).astype(np.float32)
    for logits in (few_values, forbidden, np.full((2, width), -np.inf, np.float32)):
        found = jax.jit(first_max)(logits)
        np.testing.assert_array_equal(found, logits.argmax(axis=1))


@pytest.mark.parametrize("shape", [(1, 5), (3, 128), (64, 300), (64, 2048)])
def test_rows_that_hold_no_largest_number_are_found(shape: tuple[int, int]):
    """Large shapes matter: XLA's maximum passes over NaN there on a CPU."""
    rng = np.random.default_rng(0)
    sound = rng.normal(scale=1e3, size=shape).astype(np.float32)
    sound[rng.random(shape) < 0.5] = -np.inf
    sound[:, 0] = [3e38, -3e38, 0.0][shape[0] % 3]
    found = jax.jit(lambda rows: has_maximum(rows, first_max(rows)))
    assert found(sound).all()
    assert found(np.full(shape, 2e38, np.float32)).all()
    for bad in (np.nan, -np.nan, np.inf):
        for start in range(0, shape[1], 37):
            logits, rows = sound.copy(), np.arange(0, shape[0], 2)
            logits[rows, (start + 5 * rows) % shape[1]] = bad
            assert found(logits).tolist() == [row % 2 == 1 for row in range(shape[0])]
    assert not found(np.full(shape, -np.inf, np.float32)).any()
    assert not found(np.full(shape, np.nan, np.float32)).any()


@pytest.mark.parametrize("rows", [8, 16, 32])
def test_a_cpu_finds_maxima_where_its_products_leave_them(rows: int):
    """A change of layout takes longer than the search."""

    def search(x: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
        return WHOLE.first_max(layer_matmul(x, head[None], layer=jnp.int32(0), backend="cpu"))

    x, head = jnp.zeros((rows, 64)), jnp.zeros((1024, 64))
    text = jax.jit(search).lower(x, head).compile().as_text()
    computed = text[text.index("ENTRY") :]  # what is inside a fusion is never in memory
    made = re.findall(r"%(\S+) = f32\[(\S*)\]\S* (?:fusion|copy|transpose)\(", computed)
    sizes = {name: math.prod(int(n) for n in shape.split(",") if n) for name, shape in made}
    assert not [name for name, size in sizes.items() if size >= 1024 * rows]
