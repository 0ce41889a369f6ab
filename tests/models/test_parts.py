"""Devices that share a model get parts of each parameter, and the host holds one at a time."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.loading.build import abstract_model
from emsjax.loading.opened import open_model
from emsjax.loading.parameters import plan_parameters
from emsjax.loading.parts import Division, Part
from emsjax.loading.weights import load_params
from emsjax.models.division import Cut, cut_of, possible_shares
from emsjax.models.family import dotted
from tests.engine.switches import PLAIN
from tests.tiny import LLAMA_SIZES, random_model

FOUR: Any = SimpleNamespace(number=4, of_this_process=[0, 1, 2, 3])


def parts_of(value: np.ndarray, cut: Cut, shards: int) -> list[np.ndarray]:
    """Cuts a value by indices, one after another."""
    parts = []
    for shard in range(shards):
        taken, start = [], 0
        for size, sharing in zip(cut.parts, cut.sharing, strict=True):
            held = cut.piece or size * sharing // shards
            first = shard // sharing * held
            taken += [start + n for n in range(first, first + held) if n < size]
            start += size
        part = np.take(value, taken, axis=cut.axis)
        padding = [(0, 0)] * part.ndim
        padding[cut.axis] = (0, cut.size(shards) - len(taken))
        parts.append(np.pad(part, padding))
    return parts


@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("blocks.attention.qkv.kernel", (1024, 512)),
        ("blocks.attention.qkv.bias", (1024,)),
        ("blocks.attention.out.kernel", (512, 512)),
        ("blocks.mlp.up.kernel", (2048, 512)),
        ("blocks.mlp.down.kernel", (512, 1024)),
        ("embedder.tokens", (2048, 512)),
    ],
)
def test_a_part_is_the_same_from_joined_and_from_separate_tensors(
    path: str, shape: tuple[int, ...], shards: int
):
    cut = cut_of(path, shape, PLAIN, shards)
    assert cut is not None
    value = np.random.default_rng(0).random(shape, np.float32)
    for shard, expected in enumerate(parts_of(value, cut, shards)):
        part = Part(cut, shard, shards)
        assert part.shape(shape) == expected.shape
        made = np.full(expected.shape, np.nan, np.float32)
        part.copy(value, made)
        np.testing.assert_array_equal(made, expected)
        if part.of_rows(shape):
            made[...] = np.nan
            part.copy_rows(np.split(value, [100, 700]), made)
            np.testing.assert_array_equal(made, expected)


def test_a_vocabulary_is_padded_to_whole_blocks():
    cut = cut_of("embedder.tokens", (300, 2), replace(PLAIN, vocab_size=300), 4)
    assert cut is not None
    assert [list(cut.ranges(shard, 4)) for shard in range(4)] == [
        [slice(0, 128)],
        [slice(128, 256)],
        [slice(256, 300)],
        [slice(300, 300)],
    ]


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ({}, [1, 2, 4, 8]),
        ({"num_heads": 9, "num_kv_heads": 3, "intermediate_size": 1536}, [1, 3]),
        ({"num_heads": 12, "num_kv_heads": 12, "intermediate_size": 1000}, [1, 2, 4]),
    ],
)
def test_the_numbers_of_devices_that_can_share_a_model(changes: dict, possible: list[int]):
    assert possible_shares(replace(PLAIN, **changes)) == possible


def test_the_host_holds_one_part_of_one_parameter(tmp_path: Path):
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    random_model("llama", LLAMA_SIZES | sizes, seed=0).save_pretrained(tmp_path)
    opened = open_model(tmp_path, {"llama"})
    graphdef, abstract, weight_map = abstract_model(opened.hf_config)
    shapes = {dotted(path): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(abstract)}
    parameters = plan_parameters(shapes, weight_map, opened.source)
    sent, nothing = [], jnp.zeros(())

    class Elsewhere(Division):
        """Puts parts on devices with a memory of their own."""

        def put(self, value: np.ndarray, part: Part) -> Any:
            sent.append(value.nbytes)
            return nothing

        def join(self, arrays: Any, cut: Cut | None) -> Any:
            return arrays[0]

    division = Elsewhere(FOUR, nnx.merge(graphdef, abstract).config)
    tracemalloc.start()
    load_params(abstract, parameters, opened.source, jnp.dtype(jnp.float32), division)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = max(sent)
    assert largest == 4 * (2 * 1024 // 4) * 256 * 4  # four layers' gate and up projections
    assert peak < 1.2 * largest
