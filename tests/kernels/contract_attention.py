"""The contract of `ragged_attention`: subclasses run it against one backend each."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emsjax.pallas_kernels.ragged_attention.api import ragged_attention
from emsjax.shapes import round_up
from tests.kernels.caches import (
    Ragged,
    edge_cases,
    make_cache,
    make_int8_cache,
    raggedness,
)

NUM_LAYERS, LAYER = 2, 1
# A slot with more rows than a mask has bits is a chain.
TREE_ROWS, CHAIN = 32, 0xFFFFFFFF
# Rows of a tree that were written earlier, at most.
MOST_BEFORE = 3
# Allowed float32 error relative to a row's weighted sum of |v|: the order of sums is free.
FLOAT32_ERROR = 1e-5
# Relative error of rounding once: half the distance between neighbouring numbers.
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
# Absolute error of rounding once below float16's normal range, to multiples of 2**-24.
TINY = {"float32": 0.0, "bfloat16": 0.0, "float16": 2.0**-25}


@dataclass(frozen=True)
class Case:
    """The static arguments and shapes of a call, which take one compiled program."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    dtype: str = "float32"
    window: int | None = None
    traced_window: bool = False
    sink_tokens: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    tree: bool = False
    begun: bool = False
    holes: bool = False
    int8: bool = False
    num_slots: int = 4
    capacity: int = 14
    max_q_len: int = 8
    cache_len: int = 96

    def sizes(self) -> tuple[int, int, int, int]:
        return self.num_slots, self.capacity, self.max_q_len, self.cache_len

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


CASES = {
    "mha": Case(num_kv_heads=4),
    "gqa": Case(num_heads=6, head_dim=64),
    "mqa": Case(num_kv_heads=1, head_dim=80),
    "h96": Case(head_dim=96),
    "h128": Case(head_dim=128),
    "h256": Case(num_heads=2, num_kv_heads=1, head_dim=256),
    "single-rows": Case(num_heads=9, num_kv_heads=3, head_dim=64, capacity=8, max_q_len=1),
    "prompts": Case(capacity=56, max_q_len=45),
    "window": Case(window=5),
    "soft-cap": Case(soft_cap=1.5),
    "tree": Case(tree=True),
    "tree-of-32": Case(tree=True, capacity=40, max_q_len=32),
    "tree-begun": Case(tree=True, begun=True, window=37),
    "tree-and-prompts": Case(tree=True, capacity=56, max_q_len=45, window=37),
    "sinks": Case(num_heads=6, sinks=True, window=5),
    "sink-tokens": Case(window=5, sink_tokens=3),
    "sink-tokens-and-all": Case(
        **{"sink_tokens": 34, "window": 37, "tree": True, "soft_cap": 1.5, "holes": True},
        **{"sinks": True, "head_dim": 64},
    ),
    "all": Case(tree=True, window=37, soft_cap=1.5, sinks=True, head_dim=64),
    "holes": Case(holes=True),
    "holes-and-all": Case(holes=True, tree=True, window=37, soft_cap=1.5, head_dim=64),
    "bfloat16": Case(head_dim=64, dtype="bfloat16"),
    "float16": Case(head_dim=64, dtype="float16"),
    "int8": Case(int8=True, num_heads=6, head_dim=64, dtype="bfloat16", cache_len=256),
    "int8-and-all": Case(
        **{"int8": True, "holes": True, "tree": True, "window": 137, "soft_cap": 1.5},
        **{"sinks": True, "sink_tokens": 3, "head_dim": 80, "cache_len": 256},
    ),
}
INT8 = ("int8", "int8-and-all")
# Cases that also compare rows bit for bit, alone and next to others.
COMPARED = ("mha", "gqa", "prompts", "window", "sink-tokens", "all", "bfloat16", "float16", "int8")


@functools.cache
def numbers(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns queries [B, S, N, H] and keys and values [B, S, K, H] for every cache position."""
    rng = np.random.default_rng(0)
    place, dtype = (case.num_slots, case.cache_len), ml_dtypes.finfo(case.dtype).dtype
    q = 2 * rng.standard_normal((*place, case.num_heads, case.head_dim))
    k, v = rng.standard_normal((2, *place, case.num_kv_heads, case.head_dim))
    if case.int8:
        k, v, k_scale, v_scale = stored(case)
        return q.astype(dtype), k * k_scale[..., None], v * v_scale[..., None]
    return q.astype(dtype), k.astype(dtype), v.astype(dtype)


def draw_sinks(case: Case) -> np.ndarray:
    """Returns sinks float32[N], as large as scores are."""
    return np.random.default_rng(6).uniform(-3, 3, case.num_heads).astype(np.float32)


@functools.cache
def stored(case: Case) -> tuple[np.ndarray, ...]:
    """Returns what the cache holds for every position: keys and values, then scales if int8."""
    if not case.int8:
        return numbers(case)[1:]
    rng = np.random.default_rng(5)
    place = (2, case.num_slots, case.cache_len, case.num_kv_heads)
    scales = rng.uniform(0.005, 0.03, place).astype(np.float32)
    return (*rng.integers(-127, 128, (*place, case.head_dim), np.int8), *scales)


def draw_tree(max_q_len: int, seed: int) -> list[int]:
    """Returns one ancestor mask a row of a random tree: its parent's bits and its own.

    A parent is any earlier row. The row is a root if it has none. Rows without a bit are of slots
    that are too long for a tree, see `mask_of`.
    """
    rng = np.random.default_rng(seed)
    masks: list[int] = []
    for row in range(min(max_q_len + MOST_BEFORE, TREE_ROWS)):
        parent = rng.integers(-1, row)
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << row)
    return masks


def tree_start(case: Case, ragged: Ragged, slot: int) -> int:
    """Returns the cache position of the first row of a slot's tree."""
    first = ragged.kv_lens[slot] - ragged.q_lens[slot]
    return max(first - (slot + 2) % (MOST_BEFORE + 1), 0) if case.begun else first


def mask_of(case: Case, tree: list[int], ragged: Ragged, slot: int, position: int) -> int:
    """Returns the ancestor mask of a row, all ones if its slot is a chain."""
    is_tree = case.tree and ragged.q_lens[slot] <= TREE_ROWS
    return tree[position - tree_start(case, ragged, slot)] if is_tree else CHAIN


def seen_positions(case: Case, tree: list[int], ragged: Ragged, row: int) -> list[int]:
    """Returns the cache positions that a packed row attends to."""
    slot, _, position = ragged.rows()[row]
    first = tree_start(case, ragged, slot)
    mask = mask_of(case, tree, ragged, slot, position)
    seen = list(range(position + 1))
    if case.window is not None:
        # A window counts only rows that are attended to, and places of the cache before them.
        rows = position - first if mask == CHAIN else mask.bit_count() - 1
        least = first + rows + 1 - case.window
        seen = [s for s in seen if s >= least or s < (case.sink_tokens or 0)]
    if mask != CHAIN:
        seen = [s for s in seen if s < first or mask >> (s - first) & 1]
    holes = draw_holes(case, ragged)[slot]
    return [s for s in seen if not (case.holes and holes[s])]


def skipped(case: Case, ragged: Ragged, slot: int) -> slice:
    """Returns places of a slot that must not be read, though tokens before and after them are.

    They are whole blocks, of any backend, between the sink tokens and the windows of all rows.
    """
    block = 1 << (case.cache_len // 3 - 1).bit_length()
    first = ragged.kv_lens[slot] - ragged.q_lens[slot]
    if case.sink_tokens is None or case.window is None or not ragged.q_lens[slot]:
        return slice(0)
    least = first + 1 - case.window - (31 if case.tree else 0)
    return slice(round_up(case.sink_tokens, block), max(least, 0) // block * block)


def draw_holes(case: Case, ragged: Ragged) -> np.ndarray:
    """Returns random holes bool[B, S], all of them before the slot's rows."""
    firsts = np.subtract(ragged.kv_lens, ragged.q_lens)
    drawn = np.random.default_rng(3).random((case.num_slots, case.cache_len)) < 0.4
    return drawn & (np.arange(case.cache_len) < firsts[:, None])


def oracle(case: Case, tree: list[int], ragged: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Returns attention [T, N, H] in float64, and the same with |v| for v, to scale errors by."""
    queries, keys, values = (x.astype(np.float64) for x in numbers(case))
    out = np.zeros((2, case.capacity, case.num_heads, case.head_dim))
    group = case.num_heads // case.num_kv_heads
    for row, (slot, _, position) in enumerate(ragged.rows()):
        seen = seen_positions(case, tree, ragged, row)
        k, v = (np.repeat(x[slot, seen], group, axis=1) for x in (keys, values))
        scores = case.scale * np.einsum("NH,SNH->NS", queries[slot, position], k)
        if case.soft_cap is not None:
            scores = case.soft_cap * np.tanh(scores / case.soft_cap)
        if case.sinks:
            scores = np.append(scores, draw_sinks(case)[:, None], axis=1)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights = (weights / weights.sum(axis=1, keepdims=True))[:, : len(seen)]
        out[:, row] = [np.einsum("NS,SNH->NH", weights, x) for x in (v, np.abs(v))]
    return out[0], out[1]


def tolerance(case: Case, expected: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Returns the allowed error [T, N, H].

    A backend may round weights and results to the dtype once each. The rest must be float32.
    """
    rounding = ROUNDING[case.dtype]
    tiny = TINY[case.dtype] * (1 + np.abs(numbers(case)[2].astype(np.float64)).sum(axis=1).max())
    return (FLOAT32_ERROR + rounding) * terms + rounding * np.abs(expected) + tiny


def pack_queries(case: Case, ragged: Ragged, source: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns q [T, N, H] with NaN in unused rows; slot b holds the numbers of slot `source[b]`."""
    queries = numbers(case)[0]
    q = np.full((case.capacity, *queries.shape[2:]), np.nan, queries.dtype)
    for row, (slot, _, position) in enumerate(ragged.rows()):
        q[row] = queries[source[slot] if source else slot, position]
    return q


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.dtype.itemsize}")


def contract_settings(max_examples: int) -> settings:
    """Returns settings without time limits, because the first example compiles a program."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=max_examples, suppress_health_check=slow)


def with_marks(names: Sequence[str], quick: Sequence[str] | None) -> list[Any]:
    """Returns the names as parameters; all but the quick ones are slow tests, if there are any."""
    slow = set() if quick is None else set(names) - set(quick)
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


class AttentionContract:
    """Subclass as `TestX` and set `backend`.

    Set `cases` if the backend supports only some, or if another subclass covers the others. For a
    slow backend, set `examples`, the number of ragged batches drawn for a case, and `quick`: all
    other cases are then marked as slow tests.
    """

    backend: ClassVar[str]
    examples: ClassVar[int] = 25
    quick: ClassVar[tuple[str, ...] | None] = None
    cases: ClassVar[tuple[str, ...]] = tuple(CASES)
    programs: ClassVar[dict[Case, Any]]

    def __init_subclass__(cls) -> None:
        cls.programs = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            everywhere = metafunc.function.__name__ == "test_equals_the_oracle"
            names = [name for name in self.cases if name in COMPARED or everywhere]
            metafunc.parametrize("name", with_marks(names, self.quick))

    def program(self, case: Case) -> Any:
        """Returns the jitted call, which compiles once for each case and subclass."""

        def call(
            q: jax.Array,
            cache: jax.Array,
            ancestors: jax.Array,
            window: jax.Array,
            holes: jax.Array,
            starts: jax.Array,
            lengths: dict[str, jax.Array],
        ) -> jax.Array:
            sink_tokens: Any = case.sink_tokens
            if case.traced_window and sink_tokens is not None:
                sink_tokens = jnp.asarray(sink_tokens, jnp.int32) + 0 * window
            return ragged_attention(
                q,
                cache,
                layer=jnp.asarray(LAYER, jnp.int32),
                **lengths,
                num_kv_heads=case.num_kv_heads,
                max_q_len=case.max_q_len,
                scale=case.scale,
                window=window if case.traced_window else case.window,
                sink_tokens=sink_tokens,
                soft_cap=case.soft_cap,
                sinks=jnp.asarray(draw_sinks(case)) if case.sinks else None,
                ancestors=ancestors if case.tree else None,
                tree_starts=starts if case.begun else None,
                holes=holes if case.holes else None,
                backend=self.backend,
            )

        key = replace(case, window=None) if case.traced_window else case
        if key not in self.programs:
            self.programs[key] = jax.jit(call)
        return self.programs[key]

    def attend(
        self,
        case: Case,
        tree: list[int],
        ragged: Ragged,
        source: tuple[int, ...] | None = None,
        only_sound: int | None = None,
    ) -> np.ndarray:
        """Runs the backend; slot b holds the numbers of slot `source[b]`.

        If `only_sound` names a slot, the keys of all others are NaN and their values inf.
        """
        arrays = [x[list(source)] if source else x.copy() for x in stored(case)]
        if only_sound is not None:
            others = np.arange(case.num_slots) != only_sound
            # The last two arrays are the ones that can hold NaN.
            arrays[-2][others], arrays[-1][others] = np.nan, np.inf
        for slot in range(case.num_slots):
            hidden = skipped(case, ragged, slot)
            arrays[-2][slot, hidden], arrays[-1][slot, hidden] = np.nan, np.nan
        make = make_int8_cache if case.int8 else make_cache
        cache = make(*arrays, ragged.kv_lens, layer=LAYER, num_layers=NUM_LAYERS)
        # The masks of unused rows are arbitrary.
        ancestors = np.full(case.capacity, 0xAAAAAAAA, np.uint32)
        if case.tree:
            masks = [mask_of(case, tree, ragged, slot, place) for slot, _, place in ragged.rows()]
            ancestors[: ragged.cu_q_lens[-1]] = masks
        window = np.asarray(case.window or 0, np.int32)
        q, holes = pack_queries(case, ragged, source), draw_holes(case, ragged)
        starts = [tree_start(case, ragged, slot) for slot in range(case.num_slots)]
        places = holes, np.asarray(starts, np.int32), ragged.arrays()
        return np.asarray(self.program(case)(q, cache, ancestors, window, *places))

    def check(self, case: Case, tree: list[int], ragged: Ragged) -> None:
        expected, terms = oracle(case, tree, ragged)
        out = self.attend(case, tree, ragged)
        assert out.dtype == numbers(case)[0].dtype
        assert out.shape == expected.shape
        assert np.isfinite(out).all(), f"{ragged}: not finite"
        error = np.abs(out.astype(np.float64) - expected)
        allowed = tolerance(case, expected, terms)
        worst = np.unravel_index(np.argmax(error - allowed), error.shape)
        assert (error <= allowed).all(), f"{ragged}: at {worst} off by {error[worst]:.2e}"
        assert not out[ragged.cu_q_lens[-1] :].any()

    def check_independence(self, case: Case, ragged: Ragged, shift: int, place: int) -> None:
        """Checks that a row keeps every bit alone, in another slot and as its slot's last row."""
        # An interpreted kernel is slow: do not run it to compare no rows.
        used = np.flatnonzero(ragged.q_lens)
        if not used.size:
            return
        tree = draw_tree(case.max_q_len, seed=2)
        together = self.attend(case, tree, ragged)
        for slot in used:
            at = (slot + shift) % case.num_slots
            alone = ragged.only(slot, at=at)
            out = self.attend(case, tree, alone, source=(slot,) * case.num_slots)
            rows = slice(*ragged.cu_q_lens[slot : slot + 2])
            rows_alone = slice(*alone.cu_q_lens[at : at + 2])
            np.testing.assert_array_equal(bits(together[rows]), bits(out[rows_alone]))
        if not case.tree:
            rows, single = ragged.one_row_each(place)
            out = self.attend(case, tree, single)
            np.testing.assert_array_equal(bits(together[rows]), bits(out[: len(rows)]))

    def test_equals_the_oracle(self, name):
        case = CASES[name]
        for ragged in edge_cases(*case.sizes()):
            self.check(case, draw_tree(case.max_q_len, seed=1), ragged)

        @contract_settings(self.examples)
        @given(ragged=raggedness(*case.sizes()), seed=st.integers(0, 99))
        def any_raggedness(ragged: Ragged, seed: int) -> None:
            self.check(case, draw_tree(case.max_q_len, seed), ragged)

        any_raggedness()

    def test_a_row_depends_on_no_other(self, name):
        case = CASES[name]
        for ragged in edge_cases(*case.sizes()):
            self.check_independence(case, ragged, shift=1, place=2)

        @contract_settings(-(-self.examples // 2))
        @given(raggedness(*case.sizes()), st.integers(0, 3), st.integers(0, case.max_q_len - 1))
        def any_raggedness(ragged: Ragged, shift: int, place: int) -> None:
            self.check_independence(case, ragged, shift, place)

        any_raggedness()

    def test_a_slot_is_unharmed_by_nan_and_inf_in_all_others(self, name):
        case = CASES[name]
        tree = draw_tree(case.max_q_len, seed=2)
        q_lens = tuple(min(q, case.max_q_len) for q in (3, 1, 4, 2))
        for kv_lens in ((96, 70, 96, 33), (40, 96, 9, 64)):
            ragged = Ragged(q_lens, kv_lens)
            expected = self.attend(case, tree, ragged)
            for slot in range(case.num_slots):
                out = self.attend(case, tree, ragged, only_sound=slot)
                rows = slice(*ragged.cu_q_lens[slot : slot + 2])
                np.testing.assert_array_equal(bits(out[rows]), bits(expected[rows]))

    @pytest.mark.parametrize("window", [1, 37, 2**30])
    @pytest.mark.parametrize("kind", ["window", "sink-tokens"])
    def test_a_window_may_be_traced(self, kind, window):
        case = replace(CASES[kind], window=window, traced_window=True)
        for ragged in edge_cases(*case.sizes()):
            self.check(case, [1] * case.max_q_len, ragged)
