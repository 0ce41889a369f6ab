"""Attention of packed rows in two kernels for TPUs, interpreted with the race detector on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emsjax.models.attention import contained
from emsjax.models.norms import RMSNorm, normed_heads
from emsjax.models.rotation import rotate
from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.cache_update.api import cache_places, update_kv_cache
from emsjax.pallas_kernels.int8_cache import Int8Cache, int8_cache_spec
from emsjax.pallas_kernels.kv_layout import rows_per_token
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.norms import HeadNorms
from emsjax.pallas_kernels.ragged_attention import (
    tpu_head_norms,
    tpu_head_scales,
    tpu_heads,
    tpu_tiles,
)
from emsjax.pallas_kernels.ragged_attention.api import prepare_packed, ragged_attention
from emsjax.pallas_kernels.ragged_attention.tpu_joined import Joined
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks
from emsjax.pallas_kernels.value_checks import checking_lengths
from tests.kernels.caches import Ragged

NUM_LAYERS, LAYER = 2, 1


@dataclass(frozen=True)
class Case:
    """The static arguments and shapes of a call."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    turned: int = 64
    interleaved: bool = False
    dtype: str = "float32"
    window: int | None = None
    sinks: bool = False
    # Whether each head is normalised, or all together; and by 1 + scale.
    norm: str | None = None
    offset: bool = False
    # Tables of the rotation, of which the last is used.
    tables: int = 1
    factor: bool = False
    int8: bool = False
    q_lens: tuple[int, ...] = (1, 0, 4, 2)
    kv_lens: tuple[int, ...] = (1, 9, 40, 64)
    num_rows: int = 8
    max_q_len: int = 4

    @property
    def ragged(self) -> Ragged:
        return Ragged(self.q_lens, self.kv_lens)

    @property
    def capacity(self) -> int:
        return 128 if self.int8 else 64

    @property
    def width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


# SmolLM2's heads begin in the middle of 128 lanes.
SMOLLM2 = {"num_heads": 9, "num_kv_heads": 3}
SINGLE = {"q_lens": (1, 1, 0, 1), "max_q_len": 1}
CASES = {
    "smollm2": Case(**SMOLLM2),
    "single-rows": Case(**SMOLLM2, **SINGLE, dtype="bfloat16"),
    "bfloat16": Case(dtype="bfloat16", head_dim=128, turned=128, window=7, sinks=True),
    "two-steps": Case(num_rows=16, q_lens=(5, 0, 4, 3), kv_lens=(5, 0, 40, 64), max_q_len=5),
    "h16": Case(head_dim=16, turned=16),
    "h80": Case(head_dim=80, turned=80, num_heads=3, num_kv_heads=1),
    "h256": Case(head_dim=256, turned=256, num_heads=2, num_kv_heads=1),
    "partial": Case(turned=16),
    "interleaved": Case(interleaved=True),
    "partial-interleaved": Case(interleaved=True, turned=32, head_dim=128),
    "still": Case(turned=0),
    # Qwen3 and Gemma 3, heads that begin anywhere, and OLMo 2, whose keys do.
    "norms": Case(**SINGLE, head_dim=128, turned=128, dtype="bfloat16", norm="head"),
    "norms-h256": Case(
        **{"num_heads": 2, "num_kv_heads": 1, "head_dim": 256, "turned": 256},
        **{"norm": "head", "offset": True, "tables": 2, "num_rows": 16},
    ),
    "norms-h80": Case(
        **{"head_dim": 80, "turned": 40, "num_heads": 3, "num_kv_heads": 1, "norm": "head"},
        factor=True,
    ),
    "norms-smollm2": Case(**SMOLLM2, norm="head"),
    "whole": Case(**SMOLLM2, norm="whole", dtype="bfloat16", factor=True),
    # Heads that share 128 lanes, and heads that cross them.
    "int8": Case(**SMOLLM2, int8=True),
    "int8-h80": Case(head_dim=80, turned=16, num_heads=3, num_kv_heads=1, int8=True, num_rows=136),
}
QUICK = ("smollm2", "single-rows", "bfloat16", "h80", "partial-interleaved", "norms", "norms-h80")
QUICK += ("norms-h256", "whole", "int8")
SLOW = pytest.mark.slow


def packed_rows(case: Case) -> np.ndarray:
    """Returns the rows of the product, NaN in unused ones.

    One value of the first row is infinite, and so is a lane of a key that does not turn.
    """
    rows = np.random.default_rng(0).standard_normal((case.num_rows, case.width))
    rows[case.ragged.cu_q_lens[-1] :] = np.nan
    rows[0, -3] = np.inf
    if case.turned < case.head_dim:
        rows[0, case.num_heads * case.head_dim + case.turned] = np.inf
    return rows.astype(ml_dtypes.finfo(case.dtype).dtype)


def old_cache(case: Case) -> Any:
    """Returns what is written before; NaN where nothing is."""
    rng = np.random.default_rng(1)
    if case.int8:
        return old_int8_cache(case, rng)
    rows = rows_per_token(case.num_kv_heads, case.head_dim)
    shape = NUM_LAYERS, len(case.q_lens), case.capacity, rows, LANES
    cache = np.full(shape, np.nan)
    for slot, (q_len, kv_len) in enumerate(zip(case.q_lens, case.kv_lens, strict=True)):
        cache[LAYER, slot, : kv_len - q_len] = rng.standard_normal((kv_len - q_len, rows, LANES))
    return cache.astype(ml_dtypes.finfo(case.dtype).dtype)


def old_int8_cache(case: Case, rng: np.random.Generator) -> Int8Cache:
    sizes = case.capacity, case.num_kv_heads, case.head_dim
    spec = int8_cache_spec(NUM_LAYERS, len(case.q_lens), *sizes)
    values = rng.integers(-127, 128, spec.values.shape, np.int8)
    scale = np.full(spec.scale.shape, np.nan, np.float32)
    for slot, (q_len, kv_len) in enumerate(zip(case.q_lens, case.kv_lens, strict=True)):
        written = scale[LAYER, slot, 0, :, : kv_len - q_len]
        written[:] = rng.uniform(0.001, 0.02, written.shape)
    return Int8Cache(jnp.asarray(values), jnp.asarray(scale))


def numbers_in(case: Case, cache: Any) -> np.ndarray:
    """Returns the numbers that a cache holds, of an int8 cache by head [L, B, S, 2K, H]."""
    if not case.int8:
        return np.asarray(cache)
    heads = 2 * case.num_kv_heads
    values = np.asarray(cache.values)
    by_head = values.reshape(*values.shape[:3], -1)[..., : heads * case.head_dim]
    scale = np.asarray(cache.scale)[:, :, 0, :heads].swapaxes(2, 3)
    return by_head.reshape(*values.shape[:3], heads, -1) * scale[..., None]


def angles_of(case: Case) -> tuple[jax.Array, jax.Array] | None:
    if not case.turned:
        return None
    tables = (case.tables,) if case.tables > 1 else ()
    shape = *tables, case.num_rows, 1, case.turned // 2
    angles = np.random.default_rng(2).uniform(0, 6, shape)
    return jnp.cos(angles).astype(jnp.float32), jnp.sin(angles).astype(jnp.float32)


def norms_of(case: Case) -> HeadNorms | None:
    """Returns norms of ten layers; NaN in all but one, which is in the second block of eight."""
    if case.norm is None:
        return None
    rng, layer, scales = np.random.default_rng(3), 9, []
    for heads in (case.num_heads, case.num_kv_heads):
        width = case.head_dim * (heads if case.norm == "whole" else 1)
        each = np.full((10, width), np.nan, np.float32)
        each[layer] = rng.standard_normal(width)
        scales.append(jnp.asarray(each, case.dtype))
    return HeadNorms(*scales, jnp.int32(layer), 1e-5, case.offset)


def factor_of(case: Case) -> jax.Array | None:
    factors = np.random.default_rng(4).uniform(1, 2, (case.num_rows, 1, 1))
    return jnp.asarray(factors, jnp.float32) if case.factor else None


def lengths(case: Case, ragged: Ragged) -> tuple[dict[str, Any], jax.Array]:
    slot_ids = np.full(case.num_rows, len(case.q_lens), np.int32)
    slot_ids[: ragged.cu_q_lens[-1]] = [slot for slot, _, _ in ragged.rows()]
    given = {name: jnp.asarray(array) for name, array in ragged.arrays().items()}
    return given, jnp.asarray(slot_ids)


def options_of(case: Case) -> dict[str, Any]:
    sinks = jnp.arange(case.num_heads, dtype=jnp.float32) if case.sinks else None
    unused = {"sink_tokens": None, "soft_cap": None}
    return {"scale": case.head_dim**-0.5, "window": case.window, "sinks": sinks, **unused}


def run(case: Case, packed: Any, cache: Any, angles: Any, ragged: Ragged) -> tuple[Any, Any]:
    found = jax.jit(program(case, angles, ragged))(packed, cache)
    return np.asarray(found[0]), numbers_in(case, found[1])


def program(case: Case, angles: Any, ragged: Ragged) -> Callable[[jax.Array, jax.Array], tuple]:
    """Returns the function of packed rows and a cache that is tested."""
    given, slot_ids = lengths(case, ragged)

    def call(packed: jax.Array, cache: jax.Array) -> tuple:
        attend = prepare_packed(
            jax.ShapeDtypeStruct((case.num_rows, case.num_heads, case.head_dim), packed.dtype),
            cache,
            **given,
            **{"num_kv_heads": case.num_kv_heads, "max_q_len": case.max_q_len},
            slot_ids=slot_ids,
            places=cache_places(slot_ids, *given.values()),
        )
        assert attend is not None
        turn = {"angles": angles, "interleaved": case.interleaved, "factor": factor_of(case)}
        turn |= {"table": jnp.int32(case.tables - 1), "norms": norms_of(case)}
        return attend(packed, cache, layer=jnp.int32(LAYER), **turn, **options_of(case))

    return call


def separately(case: Case, packed: Any, cache: Any, angles: Any) -> tuple[Any, Any]:
    """Does the same step by step in XLA."""
    given, slot_ids = lengths(case, case.ragged)
    heads = jnp.asarray(packed).reshape(case.num_rows, -1, case.head_dim)
    first = case.num_heads + case.num_kv_heads
    q, k, v = jnp.split(heads, (case.num_heads, first), axis=1)
    if (norms := norms_of(case)) is not None:
        q, k = (normed_by(norms, *each) for each in ((norms.queries, q), (norms.keys, k)))
    angles = jax.tree.map(lambda x: x[-1], angles) if case.tables > 1 else angles
    q, k = (rotate(x, angles, case.interleaved) for x in (q, k))
    if (factor := factor_of(case)) is not None:
        q = q * factor.astype(q.dtype)
    k, v = contained(k, v)
    where = {"layer": jnp.int32(LAYER), **given, "backend": "reference"}
    cache = jax.tree.map(jnp.asarray, cache)
    cache = update_kv_cache(cache, k, v, slot_ids=slot_ids, **where)
    sizes = {"num_kv_heads": case.num_kv_heads, "max_q_len": case.max_q_len}
    seen = ragged_attention(q, cache, **where, **sizes, **options_of(case))
    return np.asarray(seen.reshape(case.num_rows, -1)), numbers_in(case, cache)


def normed_by(norms: HeadNorms, scales: jax.Array, heads: jax.Array) -> jax.Array:
    norm = RMSNorm(scales.shape[1], norms.eps, offset=norms.offset)
    norm.scale[...] = scales[norms.layer].astype(jnp.float32)
    return normed_heads(norm, heads)


@pytest.fixture(autouse=True)
def _interpreted(interpreting_tpu: list[str]) -> None:
    pass


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else SLOW) for name in CASES]
)
def test_equals_the_steps_on_their_own(name: str):
    case = CASES[name]
    given = packed_rows(case), old_cache(case), angles_of(case)
    found = run(case, *given, case.ragged)
    assert [x.dtype for x in found] == [case.dtype] * 2
    # The first slot's rows see an infinite value. Heads that share 128 lanes also share its NaN.
    assert np.isnan(found[0][0].astype(np.float32)).any()
    assert agree(case, found, separately(case, *given))


def agree(case: Case, found: tuple[Any, Any], wanted: tuple[Any, Any]) -> bool:
    """Returns whether caches agree, and the rows of all slots but the first, which are numbers."""
    # Products of attention round weights, and the rotation may round a sum once or twice.
    tolerance = 1e-5 if case.dtype == "float32" else 2e-2
    rows, caches = (
        [x.astype(np.float32) for x in both] for both in zip(found, wanted, strict=True)
    )
    rows = [x[case.q_lens[0] :] for x in rows]
    options = {"rtol": tolerance, "atol": tolerance}
    return np.allclose(*rows, **options) and np.allclose(*caches, **options, equal_nan=True)


@pytest.mark.parametrize("tile_rows", [2, pytest.param(1, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_a_row_is_the_same_alone_and_in_another_place(
    tile_rows: int, monkeypatch: pytest.MonkeyPatch
):
    """With several tiles in a slot, and blocks that a tile shares with others."""
    monkeypatch.setattr(tpu_tiles, "tpu_blocks", lambda *_: TPUBlocks(kv=32, piece=8, q=tile_rows))
    case, slot = CASES["smollm2"], 2
    packed, cache, angles = packed_rows(case), old_cache(case), angles_of(case)
    seen, written = run(case, packed, cache, angles, case.ragged)
    first, end = case.ragged.cu_q_lens[slot : slot + 2]
    alone = case.ragged.only(slot, at=slot)
    assert angles is not None
    moved = [np.roll(np.asarray(x), -first, axis=0) for x in (packed, *angles)]
    moved[0][end - first :] = np.nan
    seen_alone, written_alone = run(case, moved[0], cache, tuple(moved[1:]), alone)
    np.testing.assert_array_equal(seen_alone[: end - first], seen[first:end])
    np.testing.assert_array_equal(written_alone[LAYER, slot], written[LAYER, slot])
    assert not seen_alone[end - first :].any()


FAULTS: dict[str, tuple[Any, str, Callable[[Callable], Callable]]] = {
    "turns the wrong way": (tpu_heads, "_is_first", lambda f: lambda *args: ~f(*args)),
    "in another head's lanes": (
        tpu_heads,
        "places",
        lambda f: lambda *args: ([*f(*args)[0][1:], f(*args)[0][0]], f(*args)[1]),
    ),
    "unused rows are anything": (Joined, "begin", lambda _: lambda _: None),
    "norms of other heads": (
        tpu_head_norms,
        "_mean_square",
        lambda f: lambda lanes, group: f(lanes, tpu_head_norms.Group(0, group.end)),
    ),
    "factors of queries for keys": (
        tpu_heads,
        "scales_of",
        lambda f: lambda groups, border, queries, keys: f(groups, border, queries, queries),
    ),
    "factors of another layer": (tpu_heads, "_row", lambda f: lambda x, row: f(x, row - 1)),
    "no factor of queries": (tpu_heads, "_scaled", lambda _: lambda lanes, *_: lanes),
    "int8 scales of other heads": (
        tpu_head_scales,
        "_largest",
        lambda f: lambda pieces, group: f(pieces, tpu_head_norms.Group(0, group.end)),
    ),
    "values keep NaN": (tpu_heads, "_token", lambda _: lambda x, n, s: x.at(s.keys + 128 * n)),
}


@SLOW
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    place, attribute, fault = FAULTS[name]
    monkeypatch.setattr(place, attribute, fault(getattr(place, attribute)))
    # The tiles of the other case leave no row out.
    case = CASES["single-rows" if place is Joined else "smollm2"]
    if "norms" in name or "factor" in name:
        case = CASES["norms-h80"]
    if "int8" in name:
        case = CASES["int8"]
    given = packed_rows(case), old_cache(case), angles_of(case)
    assert not agree(case, run(case, *given, case.ragged), separately(case, *given))


def test_lengths_are_checked_inside_checking_lengths():
    case = CASES["single-rows"]

    def traced() -> str:
        given = packed_rows(case), old_cache(case)
        return str(jax.make_jaxpr(program(case, angles_of(case), case.ragged))(*given))

    assert "debug_callback" not in traced()
    with checking_lengths():
        assert "debug_callback" in traced()


def test_what_has_no_kernel():
    def found(platform: str, rows: int, dtype: str, int8: bool = False) -> bool:
        case = CASES["smollm2"]
        given, slot_ids = lengths(case, case.ragged)
        with compiling_for(platform):
            cache: Any = jax.ShapeDtypeStruct((2, 4, 128, 4, LANES), jnp.dtype(dtype))
            cache = int8_cache_spec(2, 4, 128, 3, 64) if int8 else cache
            q = jax.ShapeDtypeStruct((rows, 9, 64), jnp.dtype(dtype))
            sizes = {"num_kv_heads": 3, "max_q_len": rows}
            places = cache_places(slot_ids, *given.values())
            where = {"slot_ids": slot_ids, "places": places}
            return prepare_packed(q, cache, **given, **sizes, **where) is not None

    assert found("tpu", 8, "bfloat16")
    assert not found("gpu", 8, "bfloat16")
    assert not found("cpu", 8, "float32")
    assert not found("tpu", 8, "float16")
    assert not found("tpu", 7, "bfloat16")
    assert not found("tpu", 4096, "bfloat16")
    assert found("tpu", 8, "bfloat16", int8=True)
    assert not found("cpu", 8, "float32", int8=True)
