"""`expert_matmul` with a product for each tile and as a TPU kernel, and how rows are grouped."""

import functools
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax.pallas_kernels import triton_products
from emsjax.pallas_kernels.ahead import compile_on
from emsjax.pallas_kernels.backends import compiling_for, noting_backends
from emsjax.pallas_kernels.expert_matmul.api import expert_matmul
from emsjax.pallas_kernels.expert_matmul.tiles import (
    MOST_ROWS,
    Tiles,
    from_tiles,
    tile_shape,
    tiles_of,
    to_tiles,
)
from emsjax.pallas_kernels.quantised import Grouped
from emsjax.plan.copies import copied_slices
from tests.kernels.contract_expert_matmul import (
    CASES,
    USED,
    ExpertMatmulContract,
    rows_and_choices,
)
from tests.kernels.interpreted_products import product_of_pairs


class TestReference(ExpertMatmulContract):
    backend = "reference"

    def test_a_row_is_the_same_for_any_number_of_rows(self, name):
        case = CASES[name]
        x, chosen = rows_and_choices(case)
        whole = self.multiply(case, x, chosen, USED)
        part = self.multiply(case, x[:5], chosen[:5], 5)
        np.testing.assert_array_equal(part.view(np.uint8), whole[:5].view(np.uint8))


class TestTpu(ExpertMatmulContract):
    """Interpreted on a CPU."""

    backend = "tpu"
    cases: ClassVar = ("bfloat16", "float32", "many-experts", "int8", "groups", "offsets")

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_tpu: list[str]) -> None:
        pass


class TestTriton(ExpertMatmulContract):
    """Interpreted on a CPU."""

    backend = "gpu-triton"
    cases: ClassVar = ("bfloat16", "many-experts", "one-expert", "int8", "groups", "offsets")

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
        if jax.default_backend() != "gpu":
            # XLA's products on a CPU depend on the number of rows.
            monkeypatch.setattr(triton_products, "product_transposed", product_of_pairs)


@pytest.mark.parametrize(
    ("size", "chosen"),
    [(16, "gpu-triton"), (64, "gpu-triton"), (8, "reference"), (24, "reference")],
)
def test_tiles_that_are_no_program_of_triton_are_left_to_the_reference(size: int, chosen: str):
    """A program would take rows of two tiles, and multiply them with one expert."""
    tiles = tiles_of(jnp.zeros((3, 1), jnp.int32), jnp.ones(3, bool), 2)
    x = jax.ShapeDtypeStruct((len(tiles.experts), size, 64), jnp.bfloat16)
    kernels = jax.ShapeDtypeStruct((2, 2, 64, 64), jnp.bfloat16)
    with compiling_for("gpu", "8.0"), noting_backends() as picked:
        jax.eval_shape(
            functools.partial(expert_matmul, layer=jnp.int32(0), tiles=tiles), x, kernels
        )
    assert picked["expert_matmul"] == chosen


# One program for all examples of a shape.
grouped = jax.jit(tiles_of, static_argnums=2)


@given(st.integers(0, 2**32), st.sampled_from([(1, 1, 4), (24, 2, 3), (40, 3, 40), (200, 2, 3)]))
def test_each_choice_of_a_used_row_has_one_place_in_a_tile_of_its_expert(
    seed: int, shape: tuple[int, int, int]
):
    (num_rows, num_chosen, num_experts), rng = shape, np.random.default_rng(seed)
    # Mostly few experts, so that some fill several tiles and others have none.
    liked = rng.integers(num_chosen, num_experts + 1)
    chosen = np.stack([rng.permutation(liked)[:num_chosen] for _ in range(num_rows)])
    used = rng.random(num_rows) < rng.choice([0, 0.5, 1])
    tiles = Tiles(*map(np.asarray, grouped(chosen.astype(np.int32), used, num_experts)))
    rows, places, experts, (num_used,) = tiles
    assert rows.shape == tile_shape(num_rows * num_chosen, num_experts)
    found = {(int(r), int(e)) for tile, e in zip(rows, experts, strict=True) for r in tile}
    wanted = {(r, int(e)) for r in range(num_rows) if used[r] for e in chosen[r]}
    assert {each for each in found if each[0] < num_rows} == wanted
    assert (rows < num_rows).sum() == len(wanted)
    assert ((rows < num_rows).any(axis=1) == (np.arange(len(rows)) < num_used)).all()
    assert (experts[num_used:] == experts[max(num_used - 1, 0)]).all()
    for row, n in itertools.product(np.flatnonzero(used), range(num_chosen)):
        assert rows.flat[places[row, n]] == row
        assert experts[places[row, n] // rows.shape[1]] == chosen[row, n]


def test_the_worst_case_fills_all_tiles():
    """All experts but one have one row more than fills their tiles."""
    num_tiles, size = tile_shape(6 * (MOST_ROWS + 1), 6)
    assert size == MOST_ROWS
    chosen = np.repeat(np.arange(6, dtype=np.int32), size + 1)[:, None]
    tiles = tiles_of(jnp.asarray(chosen), jnp.ones(len(chosen), bool), 6)
    assert int(tiles.used[0]) == num_tiles == 12


def test_results_are_added_by_their_shares():
    x = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)
    chosen = jnp.asarray([[0, 1], [1, 2], [2, 0]], jnp.int32)
    tiles = tiles_of(chosen, jnp.asarray([True, True, False]), 3)
    y = to_tiles(x, tiles) * (tiles.experts[:, None, None] + 1).astype(jnp.float32)
    out = from_tiles(y, jnp.asarray([[0.5, 0.25], [1, 0], [1, 1]]), tiles)
    np.testing.assert_array_equal(out[:2], x[:2] * jnp.asarray([[1.0], [2.0]]))


@pytest.mark.parametrize("name", ["kernels", "tiles.experts"])
def test_errors_name_the_wrong_argument(name: str):
    tiles = tiles_of(jnp.zeros((3, 1), jnp.int32), jnp.ones(3, bool), 2)
    x = to_tiles(jnp.zeros((3, 64)), tiles)
    if name == "tiles.experts":
        tiles = tiles._replace(experts=tiles.experts[:1])
    kernels = jnp.zeros((1, 2, 8, 32 if name == "kernels" else 64))
    with pytest.raises(ValueError, match=rf"^{name}"):
        expert_matmul(x, kernels, layer=jnp.zeros((), jnp.int32), tiles=tiles)


# (rows, chosen, experts, outputs, inputs, layers): Qwen3-30B-A3B and Mixtral-8x22B.
SHAPES = [(64, 8, 128, 1536, 2048, 4), (512, 2, 8, 6144, 16384, 2)]


@pytest.mark.usefixtures("no_compile_cache")
@pytest.mark.parametrize(
    ("shape", "dtype", "group"),
    [
        (SHAPES[0], "bfloat16", None),
        (SHAPES[1], "int8", None),
        (SHAPES[0], "int4", 32),
        (SHAPES[1], "int4", 128),
    ],
)
def test_tpu_v5e_reads_experts_where_they_lie(
    shape: tuple[int, ...], dtype: str, group: int | None
):
    num_rows, num_chosen, num_experts, num_out, num_in, num_layers = shape

    def kernels() -> Any:
        stack = (num_layers, num_experts, num_out, num_in)
        values = jax.ShapeDtypeStruct(stack, dtype)
        if group is None:
            return values
        scales = (*stack[:2], num_in // group, num_out)
        return Grouped(values, jax.ShapeDtypeStruct(scales, jnp.float32))  # type: ignore[arg-type]

    def call(x: jax.Array, chosen: jax.Array, kernels: Any, layer: jax.Array) -> jax.Array:
        tiles = tiles_of(chosen, jnp.ones(num_rows, bool), num_experts)
        x = to_tiles(x, tiles)
        return expert_matmul(x, kernels, layer=layer, tiles=tiles, backend="tpu")

    compiled = compile_on(
        "v5e",
        call,
        lambda: (
            jax.ShapeDtypeStruct((num_rows, num_in), jnp.bfloat16),
            jax.ShapeDtypeStruct((num_rows, num_chosen), jnp.int32),
            kernels(),
            jax.ShapeDtypeStruct((), jnp.int32),
        ),
    )
    assert "tpu_custom_call" in compiled.as_text()
    assert not copied_slices(compiled.as_text(), num_out * num_in)
    # The rows in tiles and the results, but no layer's and no expert's weights.
    tiles, size = tile_shape(num_rows * num_chosen, num_experts)
    copies = 1 if group is None else max(128 // group, 1)
    most = tiles * size * (copies * num_in + num_out) * 2
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * most
