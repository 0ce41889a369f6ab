"""The real TPU compiler compiles the TPU kernels for the shapes of known models. Nothing runs."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from emsjax.loading.named import named_config
from emsjax.pallas_kernels.ahead import TOPOLOGIES, compile_on
from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.cache_update.api import cache_places, update_kv_cache
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.pallas_kernels.norms import HeadNorms
from emsjax.pallas_kernels.quantised import Grouped
from emsjax.pallas_kernels.ragged_attention.api import prepare_packed
from emsjax.pallas_kernels.report.ahead import (
    attention_arguments,
    attention_call,
    cache_of,
    compile_attention,
)
from emsjax.pallas_kernels.report.work import MODELS, Heads, Work, heads_of, ragged
from emsjax.plan.copies import copied_stacks
from emsjax.shapes import round_up

pytestmark = pytest.mark.usefixtures("no_compile_cache")

CONTEXT = 2048
# A newer jax adds the name of the operand that a result shares its memory with.
KERNEL = re.compile(r"%([a-z_]+)[.\w]* = .* custom-call\(")
# (slots, most rows of a slot)
BATCHES = ((1, 16), (8, 8), (64, 2))
OTHER_HEADS = {
    "mqa": Heads(8, 1, 128),
    "narrow-k": Heads(14, 2, 64),
    "h96": Heads(12, 12, 96),
    "h256": Heads(16, 8, 256),
    "12-kv-heads": Heads(24, 12, 128),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {
        **{"window": 512, "sink_tokens": 4, "soft_cap": 30.0},
        **{"tree": True, "begun": True, "sinks": True},
    },
}
TPU_OPTIONS = OPTIONS | {"holes": {"holed": True}}


def check(compiled: jax.stages.Compiled, work: Work) -> None:
    """Checks that the program uses the kernel and makes no copy of the cache in any layout."""
    check_no_copy(compiled, work)
    assert "tpu_custom_call" in compiled.as_text()


def check_no_copy(compiled: jax.stages.Compiled, work: Work) -> None:
    """Checks that the program makes no copy of the cache in any layout."""
    with compiling_for("tpu"):
        arrays = jax.tree.leaves(cache_of(work))
    cache_bytes = sum(array.size * array.dtype.itemsize for array in arrays)
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes >= cache_bytes
    # The temporary memory holds queries and results in padded tiles. They exceed a tenth of the
    # cache only for prompts, which fill the cache.
    assert memory.temp_size_in_bytes <= cache_bytes / (10 if work.max_q_len <= 16 else 2)
    # Temporary memory does not include VMEM, which is large enough for a copy of the scales.
    assert not copied_stacks(compiled.as_text(), [array.shape for array in arrays])


@pytest.mark.parametrize("model", ["smollm2-135m", "opt-13b", "llama-3-8b"])
def test_step_of_drafts(model: str):
    work = ragged(heads_of(named_config(model)), 8, 8, CONTEXT)
    check(compile_attention("v5e", work), work)


@pytest.mark.parametrize("generation", ["v5e", "v6e"])
@pytest.mark.parametrize("model", ["smollm2-135m", "llama-3-8b"])
def test_step_of_drafts_with_an_int8_cache(model: str, generation: str):
    work = ragged(heads_of(named_config(model)), 8, 8, CONTEXT)._replace(int8=True)
    check(compile_attention(generation, work), work)


@pytest.mark.parametrize("int8", [False, True])
def test_attention_without_a_kernel_does_not_copy_the_cache(int8: bool):
    """XLA would change the layout of all of it, see `kv_layout.read_kv`."""
    work = ragged(heads_of(named_config("llama-3-8b")), 8, 8, CONTEXT)._replace(int8=int8)
    call = attention_call(work, "reference")
    check_no_copy(compile_on("v5e", call, functools.partial(attention_arguments, work)), work)


def test_matmul_precision_set_by_the_caller_is_accepted():
    work = ragged(heads_of(named_config("smollm2-135m")), 8, 8, CONTEXT)
    with jax.default_matmul_precision("highest"):
        check(compile_attention("v5e", work), work)


def every_shape() -> list[Any]:
    """Returns (model, TPU, slots, rows): each model for two TPUs, each TPU for half the models."""
    return [
        (model, generation, *BATCHES[(m + t // 2) % len(BATCHES)])
        for m, model in enumerate(MODELS)
        for t, generation in enumerate(TOPOLOGIES)
        if (m + t) % 2 == 0
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "generation", "slots", "rows"), every_shape())
def test_every_model_and_every_tpu(model: str, generation: str, slots: int, rows: int):
    work = ragged(heads_of(named_config(model)), slots, rows, CONTEXT)
    check(compile_attention(generation, work), work)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "options"),
    [*itertools.product(OTHER_HEADS, OPTIONS), ("h96", "holes")],
)
def test_other_heads_and_options(heads: str, options: str):
    work = ragged(OTHER_HEADS[heads], 8, 8, CONTEXT)
    check(compile_attention("v5e", work, **TPU_OPTIONS[options]), work)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["plain", "all", "holes"])
@pytest.mark.parametrize("heads", ["opt-13b", *OTHER_HEADS])
def test_int8_caches_of_other_heads_and_options(heads: str, options: str):
    known = MODELS | OTHER_HEADS
    work = ragged(known[heads], 8, 8, CONTEXT)._replace(int8=True)
    check(compile_attention("v5e", work, **TPU_OPTIONS[options]), work)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2-135m", "opt-13b", "llama-3-8b"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_prompt_chunk(model: str, itemsize: int):
    work = ragged(heads_of(named_config(model)), 4, 512, CONTEXT)._replace(itemsize=itemsize)
    check(compile_attention("v5e", work), work)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("model", ["smollm2-135m", "opt-13b"])
def test_cache_update_is_in_place(model: str, int8: bool):
    check_cache_update("v5e", heads_of(named_config(model)), int8)


@pytest.mark.slow
@pytest.mark.parametrize("generation", [name for name in TOPOLOGIES if name != "v5e"])
@pytest.mark.parametrize("heads", OTHER_HEADS)
def test_int8_cache_update_of_other_heads(heads: str, generation: str):
    check_cache_update(generation, OTHER_HEADS[heads], int8=True)


# For each TPU heads and the lanes that turn, some in pairs of neighbours; plain steps and drafts;
# what is normalised; and whether the cache is int8. With norms, queries have factors, and there are
# two rotary tables.
PACKED = [
    ("v4", heads_of(named_config("smollm2-135m")), 64, False, (8, 1), None, False),
    ("v5e", OTHER_HEADS["h96"], 96, False, (8, 4), "head", False),
    ("v5p", OTHER_HEADS["h256"], 64, True, (8, 8), "whole", False),
    ("v6e", OTHER_HEADS["mqa"], 0, False, (3, 8), "head", False),
    ("v5e", heads_of(named_config("smollm2-135m")), 64, False, (8, 1), None, True),
    ("v6e", heads_of(named_config("llama-3-8b")), 128, False, (8, 8), None, True),
]


@pytest.mark.parametrize(
    ("generation", "heads", "turned", "interleaved", "batch", "norm", "int8"), PACKED
)
def test_packed_rows(
    generation: str,
    heads: Heads,
    turned: int,
    interleaved: bool,
    batch: tuple[int, int],
    norm: str | None,
    int8: bool,
):
    """The cache is updated in place, and XLA adds no operation around the kernels."""
    slots, rows = batch
    num_rows, num_heads = round_up(slots * rows, 8), heads.num_heads + 2 * heads.num_kv_heads

    def call(packed, cache, angles, scales, layer, slot_ids, cu_q_lens, kv_lens):
        attend = prepare_packed(
            jax.ShapeDtypeStruct((num_rows, heads.num_heads, heads.head_dim), packed.dtype),
            cache,
            cu_q_lens=cu_q_lens,
            kv_lens=kv_lens,
            num_kv_heads=heads.num_kv_heads,
            max_q_len=rows,
            slot_ids=slot_ids,
            places=cache_places(slot_ids, cu_q_lens, kv_lens),
        )
        assert attend is not None
        turn = {"angles": angles if turned else None, "interleaved": interleaved}
        if norm is not None:
            factor = slot_ids.astype(jnp.float32)[:, None, None]
            turn |= {"norms": HeadNorms(*scales, layer, 1e-5, True), "factor": factor}
            turn |= {"table": layer % 2}
        return attend(packed, cache, **turn, layer=layer, scale=0.1)

    def arguments() -> tuple:
        packed = jax.ShapeDtypeStruct((num_rows, num_heads * heads.head_dim), jnp.bfloat16)
        work = ragged(heads, slots, rows, CONTEXT)._replace(int8=int8)
        tables = () if norm is None else (2,)
        angles = jax.ShapeDtypeStruct((*tables, num_rows, 1, turned // 2), jnp.float32)
        widths = [
            heads.head_dim * (count if norm == "whole" else 1)
            for count in (heads.num_heads, heads.num_kv_heads)
        ]
        scales = [jax.ShapeDtypeStruct((20, width), jnp.bfloat16) for width in widths]
        counts = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((), (num_rows,), (slots + 1,))]
        return (
            packed,
            cache_of(work),
            (angles, angles),
            scales,
            *counts,
            jax.ShapeDtypeStruct((slots,), jnp.int32),
        )

    compiled = compile_on(generation, call, arguments, donate=1)
    text = compiled.as_text()
    scales = ["update_scales"] if int8 else []
    assert KERNEL.findall(text) == ["split_heads", *scales, "ragged_attention"]
    assert not re.search(rf"bf16\[{num_rows},\S* (?:copy|transpose|fusion)\(", text)


# Three products of Llama-3-8B, of Qwen2.5-7B and of a part of a layer. Of 1,024 rows several blocks
# read the same weights.
GROUPED = [
    ("v5e", 64, (28672, 4096), 128, False),
    ("v6e", 8, (4096, 14336), 128, True),
    ("v5e", 1024, (3584, 18944), 128, True),
    ("v6e", 128, (512, 3584), 32, True),
]


@pytest.mark.parametrize(("generation", "rows", "shape", "group", "offsets"), GROUPED)
def test_4_bit_weights_are_read_in_place(
    generation: str, rows: int, shape: tuple[int, int], group: int, offsets: bool
):
    """No widened copy of a layer's weights, and none of its slice, is made."""
    num_layers, (num_out, num_in) = 4, shape

    def call(x: jax.Array, kernels: Grouped, layer: jax.Array) -> jax.Array:
        return layer_matmul(x, kernels, layer=layer, backend="tpu")

    def arguments() -> tuple:
        groups = jax.ShapeDtypeStruct((num_layers, num_in // group, num_out), jnp.float32)
        values = jax.ShapeDtypeStruct((num_layers, num_out, num_in), jnp.int4)
        x = jax.ShapeDtypeStruct((rows, num_in), jnp.bfloat16)
        kernels = Grouped(values, groups, groups if offsets else None)
        return x, kernels, jax.ShapeDtypeStruct((), jnp.int32)

    compiled = compile_on(generation, call, arguments)
    moved = rows * (num_in * max(128 // group, 1) * 2 + num_out * 8)
    layer_bytes = num_out * num_in // 2
    assert compiled.memory_analysis().temp_size_in_bytes < moved + layer_bytes / 4
    assert "tpu_custom_call" in compiled.as_text()


def check_cache_update(generation: str, heads: Heads, int8: bool) -> None:
    work = ragged(heads, 8, 8, CONTEXT)._replace(int8=int8)

    def call(cache, k, v, layer, slot_ids, cu_q_lens, kv_lens):
        return update_kv_cache(
            cache,
            k,
            v,
            layer=layer,
            slot_ids=slot_ids,
            cu_q_lens=cu_q_lens,
            kv_lens=kv_lens,
            backend="tpu",
        )

    def arguments() -> tuple:
        rows = jax.ShapeDtypeStruct((64, heads.num_kv_heads, heads.head_dim), jnp.bfloat16)
        counts = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((), (64,), (9,), (8,))]
        return cache_of(work), rows, rows, *counts

    compiled = compile_on(generation, call, arguments, donate=0)
    memory = compiled.memory_analysis()
    with compiling_for("tpu"):
        arrays = jax.tree.leaves(cache_of(work))
    cache_bytes = sum(array.size * array.dtype.itemsize for array in arrays)
    assert memory.alias_size_in_bytes >= cache_bytes
    # What an int8 cache receives is first in float32, padded to whole tiles.
    assert memory.temp_size_in_bytes < cache_bytes / (40 if int8 else 100)
