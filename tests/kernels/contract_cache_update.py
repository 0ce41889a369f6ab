"""The contract of `update_kv_cache`: subclasses run it against one backend each."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.cache_update.api import update_kv_cache
from emsjax.pallas_kernels.int8_cache import Int8Cache
from emsjax.pallas_kernels.kv_layout import rows_per_token
from emsjax.pallas_kernels.kv_rows import LANES, scale_rows
from tests.kernels.caches import Ragged, edge_cases, raggedness, store
from tests.kernels.contract_attention import bits, contract_settings, with_marks

NUM_LAYERS = 3


@dataclass(frozen=True)
class Case:
    """The static arguments and shapes of a call, which take one compiled program."""

    num_kv_heads: int = 2
    head_dim: int = 16
    dtype: str = "float32"
    num_slots: int = 3
    capacity: int = 12
    max_q_len: int = 12
    cache_len: int = 24

    def sizes(self) -> tuple[int, int, int, int]:
        return self.num_slots, self.capacity, self.max_q_len, self.cache_len


CASES = {
    "padded-row": Case(),
    "three-rows": Case(num_kv_heads=3, head_dim=64),
    "h80": Case(num_kv_heads=1, head_dim=80),
    "h128": Case(head_dim=128),
    "bfloat16": Case(num_kv_heads=3, head_dim=64, dtype="bfloat16"),
    "float16": Case(num_kv_heads=3, head_dim=64, dtype="float16"),
}
INT8_CASES = {
    "three-rows": Case(num_kv_heads=3, head_dim=64, dtype="bfloat16", cache_len=256),
    "h128": Case(head_dim=128, cache_len=256, capacity=300, max_q_len=250),
    "part-of-a-tile": Case(),
}


def old_cache(case: Case) -> np.ndarray:
    """Returns random numbers, a fifth of them NaN with random payload bits."""
    rng = np.random.default_rng(0)
    rows = rows_per_token(case.num_kv_heads, case.head_dim)
    shape = (NUM_LAYERS, case.num_slots, case.cache_len, rows, LANES)
    cache = rng.standard_normal(shape).astype(ml_dtypes.finfo(case.dtype).dtype)
    quiet_nan = bits(np.asarray(np.nan, cache.dtype))
    payload = rng.integers(1, 32, shape).astype(quiet_nan.dtype)
    np.copyto(bits(cache), quiet_nan | payload, where=rng.random(shape) < 0.2)
    return cache


def new_rows(case: Case, ragged: Ragged) -> np.ndarray:
    """Returns k and v as one array [2, T, K, H], NaN in unused rows."""
    shape = (2, case.capacity, case.num_kv_heads, case.head_dim)
    rows = np.random.default_rng(1).standard_normal(shape)
    rows[:, ragged.cu_q_lens[-1] :] = np.nan
    return rows.astype(ml_dtypes.finfo(case.dtype).dtype)


def expected_cache(
    case: Case, cache: np.ndarray, new: np.ndarray, layer: int, ragged: Ragged
) -> np.ndarray:
    """Returns the updated cache, written token by token."""
    expected = cache.copy()
    width = case.num_kv_heads * case.head_dim
    for row, (slot, _, position) in enumerate(ragged.rows()):
        token = expected[layer, slot, position].reshape(-1)
        token[:width], token[width : 2 * width] = (x[row].ravel() for x in new)
        token[2 * width :] = 0
    return expected


def old_int8_cache(case: Case) -> Int8Cache:
    """Returns random numbers and scales, a fifth of the scales NaN."""
    rng = np.random.default_rng(0)
    place = (NUM_LAYERS, case.num_slots)
    rows = rows_per_token(case.num_kv_heads, case.head_dim, int8=True)
    tiles = (-(-case.cache_len // LANES), scale_rows(case.num_kv_heads, target_platform()))
    scale = rng.standard_normal((*place, *tiles, LANES)).astype(np.float32)
    scale[rng.random(scale.shape) < 0.2] = np.nan
    values = rng.integers(-128, 128, (*place, case.cache_len, rows, LANES), np.int8)
    return Int8Cache(jax.numpy.asarray(values), jax.numpy.asarray(scale))


def expected_int8_cache(
    case: Case, cache: Int8Cache, new: np.ndarray, layer: int, ragged: Ragged
) -> Int8Cache:
    """Returns the updated cache, quantised and written token by token."""
    values, scale = np.array(cache.values), np.array(cache.scale)
    heads, width = case.num_kv_heads, case.num_kv_heads * case.head_dim
    for row, (slot, _, position) in enumerate(ragged.rows()):
        token = values[layer, slot, position].reshape(-1)
        token[2 * width :] = 0
        lane = scale[layer, slot, position // LANES, :, position % LANES]
        lane[2 * heads :] = 0
        for part, x in enumerate(new.astype(np.float32)):
            factors = np.abs(x[row]).max(axis=1) * np.float32(1 / 127)
            lane[part * heads : (part + 1) * heads] = factors
            token[part * width : (part + 1) * width] = np.rint(
                x[row] * (1 / factors)[:, None]
            ).ravel()
    return Int8Cache(values, scale)  # type: ignore[arg-type]


class CacheUpdateContract:
    """Subclass as `TestX` and set `backend`.

    `cases`, `examples` and `quick` mean the same as in `AttentionContract`; `quick_int8` is of
    `INT8_CASES`.
    """

    backend: ClassVar[str]
    cases: ClassVar[tuple[str, ...]] = tuple(CASES)
    examples: ClassVar[int] = 25
    quick: ClassVar[tuple[str, ...] | None] = None
    quick_int8: ClassVar[tuple[str, ...] | None] = None
    programs: ClassVar[dict[bool, Any]]

    def __init_subclass__(cls) -> None:
        def call(cache: Any, k: Any, v: Any, layer: Any, lengths: Any) -> jax.Array:
            return update_kv_cache(cache, k, v, layer=layer, **lengths, backend=cls.backend)

        cls.programs = {
            donated: jax.jit(call, donate_argnums=0 if donated else ()) for donated in (False, True)
        }

    def update(
        self, case: Case, cache: Any, ragged: Ragged, layer: int, *, donated: bool = False
    ) -> Any:
        slot_ids = np.full(case.capacity, case.num_slots, np.int32)
        slot_ids[: ragged.cu_q_lens[-1]] = [slot for slot, _, _ in ragged.rows()]
        lengths = {**ragged.arrays(), "slot_ids": slot_ids}
        new = new_rows(case, ragged)
        return self.programs[donated](cache, *new, np.asarray(layer, np.int32), lengths)

    def check(self, case: Case, ragged: Ragged, layer: int, *, donated: bool = False) -> None:
        cache, new = old_cache(case), new_rows(case, ragged)
        stored = jax.numpy.asarray(store(cache))
        out = self.update(case, stored, ragged, layer, donated=donated)
        assert stored.is_deleted() == donated
        expected = expected_cache(case, cache, new, layer, ragged)
        assert out.dtype == stored.dtype
        np.testing.assert_array_equal(bits(np.asarray(out)), bits(expected), str(ragged))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", with_marks(self.cases, self.quick))
        if "int8_name" in metafunc.fixturenames:
            metafunc.parametrize("int8_name", with_marks(tuple(INT8_CASES), self.quick_int8))

    def test_rows_are_written_at_their_offsets_and_nothing_else_changes(self, name):
        case = CASES[name]
        for layer, ragged in enumerate(edge_cases(*case.sizes())):
            self.check(case, ragged, layer % NUM_LAYERS)

        @contract_settings(self.examples)
        @given(ragged=raggedness(*case.sizes()), layer=st.integers(0, NUM_LAYERS - 1))
        def any_raggedness(ragged: Ragged, layer: int) -> None:
            self.check(case, ragged, layer)

        any_raggedness()

    def check_int8(self, case: Case, ragged: Ragged, layer: int) -> None:
        cache = old_int8_cache(case)
        out = self.update(case, cache, ragged, layer)
        expected = expected_int8_cache(case, cache, new_rows(case, ragged), layer, ragged)
        np.testing.assert_array_equal(out.values, expected.values, str(ragged))
        np.testing.assert_array_equal(
            bits(np.asarray(out.scale)), bits(np.asarray(expected.scale)), str(ragged)
        )

    def test_int8_numbers_and_scales_are_written_and_nothing_else_changes(self, int8_name):
        case = INT8_CASES[int8_name]
        for layer, ragged in enumerate(edge_cases(*case.sizes())):
            self.check_int8(case, ragged, layer % NUM_LAYERS)

        @contract_settings(self.examples)
        @given(ragged=raggedness(*case.sizes()), layer=st.integers(0, NUM_LAYERS - 1))
        def any_raggedness(ragged: Ragged, layer: int) -> None:
            self.check_int8(case, ragged, layer)

        any_raggedness()

    def test_a_donated_cache_is_updated_in_place(self):
        self.check(CASES["padded-row"], Ragged((1, 0, 4), (9, 3, 24)), layer=1, donated=True)

    def test_a_call_outside_of_a_compiled_program(self, monkeypatch):
        monkeypatch.setitem(self.programs, False, self.programs[False].__wrapped__)
        self.check(CASES["padded-row"], Ragged((1, 0, 4), (9, 3, 24)), layer=1)
