"""Bundles of the kernels between the products of a layer, compiled for TPUs that are not there.

python -m benchmarks.layer_kernels

A bundle is an instruction word, and takes one cycle unless it waits; see `pallas_kernels.report`.
"""

import argparse
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import write_json
from emsjax.cli.markdown import table
from emsjax.host.provenance import version_of
from emsjax.loading.named import named_config
from emsjax.pallas_kernels.environment import tpu_compiler

MODELS = ("smollm2-135m", "llama-3.2-1b", "llama-3-8b", "qwen3-0.6b", "qwen3-8b", "gemma-3-1b")
CHIPS = ("v5e", "v6e")
SLOTS, CAPACITY, LAYERS = 8, 2048, 4
# Rows of a slot.
STEPS = (1, 8)
HEADER = ("model", "chip", "rows", "split_heads", "residual_norm, twice")


def main() -> None:
    """Compiles the kernels and writes their bundles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/layer_kernels.json")
    )
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(tpu_compiler(Path(folder)))
        found = [
            _measure(model, chip, rows, Path(folder))
            for model in MODELS
            for chip in CHIPS
            for rows in STEPS
        ]
    versions = {name: version_of(name) for name in ("jax", "libtpu")}
    write_json(output, {"benchmark": "layer_kernels", "versions": versions, "steps": found})
    print(table(HEADER, ([str(x) for x in step.values()] for step in found)))


def _measure(model: str, chip: str, rows: int, dump: Path) -> dict[str, Any]:
    # Imported here because the environment must be prepared before jax is imported.
    from emsjax.pallas_kernels.report.bundles import read_bundles

    num_rows = SLOTS * rows
    _compile(chip, *_heads(model, rows))
    # Loops in order: steps of eight rows unless there is one, tokens to copy, tiles, and waits.
    trips = [num_rows, SLOTS, num_rows]
    split = read_bundles(dump, "split_heads", [num_rows // 8, *trips] if rows > 1 else trips)
    _compile(chip, *_norm(model, num_rows))
    norm = read_bundles(dump, "residual_norm", [num_rows // 8] if rows > 1 else [])
    return {"model": model, "chip": chip, "rows": num_rows, "split": split, "norms": 2 * norm}


def _compile(chip: str, call: Callable, arguments: Callable[[], tuple], donate: Any) -> None:
    from emsjax.pallas_kernels.ahead import compile_on

    compile_on(chip, call, arguments, donate=donate)


def _heads(model: str, rows: int) -> tuple[Callable, Callable[[], tuple], Any]:
    """Returns norms, rotation, update and attention of a step, its arguments, and the cache's."""
    import jax
    import jax.numpy as jnp

    from emsjax.pallas_kernels.cache_update.api import cache_places
    from emsjax.pallas_kernels.kv_layout import rows_per_token
    from emsjax.pallas_kernels.norms import HeadNorms
    from emsjax.pallas_kernels.ragged_attention.api import prepare_packed

    config, num_rows = named_config(model), SLOTS * rows
    heads, keys, width = config.num_heads, config.num_kv_heads, config.head_dim
    given = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)

    def call(packed, cache, angles, scales, layer, slot_ids, cu_q_lens, kv_lens):  # type: ignore[no-untyped-def]
        lengths = {"cu_q_lens": cu_q_lens, "kv_lens": kv_lens}
        places = cache_places(slot_ids, **lengths)
        q, where = given((num_rows, heads, width)), {"slot_ids": slot_ids, "places": places}
        attend = prepare_packed(q, cache, **lengths, num_kv_heads=keys, max_q_len=rows, **where)
        assert attend is not None
        turn: dict[str, Any] = {"angles": angles, "interleaved": False}
        if config.qk_norm == "head":
            turn["norms"] = HeadNorms(scales, scales, layer, config.norm_eps, config.norm_offset)
        return attend(packed, cache, **turn, layer=layer, scale=1.0)

    def arguments() -> tuple:
        cache = given((LAYERS, SLOTS, CAPACITY, rows_per_token(keys, width), 128))
        angles = jax.ShapeDtypeStruct((num_rows, 1, width // 2), jnp.float32)
        shapes = (), (num_rows,), (SLOTS + 1,), (SLOTS,)
        numbers = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes)
        packed, scales = given((num_rows, (heads + 2 * keys) * width)), given((LAYERS, width))
        return packed, cache, (angles, angles), scales, *numbers

    return call, arguments, 1


def _norm(model: str, num_rows: int) -> tuple[Callable, Callable[[], tuple], Any]:
    """Returns a residual sum with its norm, its abstract arguments, and none to donate."""
    import jax
    import jax.numpy as jnp

    from emsjax.pallas_kernels.norms import PartsNorm
    from emsjax.pallas_kernels.residual_norm.api import residual_norm

    config = named_config(model)
    width, options = config.hidden_size, {"eps": config.norm_eps, "offset": config.norm_offset}

    def call(x, parts, scales, layer):  # type: ignore[no-untyped-def]
        of_parts = PartsNorm(scales, 1) if config.norm_place == "around" else None
        return residual_norm(x, parts, scales, layer=layer, of_parts=of_parts, **options)

    def arguments() -> tuple:
        x = jax.ShapeDtypeStruct((num_rows, width), jnp.bfloat16)
        parts = jax.ShapeDtypeStruct((1, num_rows, width), jnp.float32)
        scales = jax.ShapeDtypeStruct((LAYERS, width), jnp.bfloat16)
        return x, parts, scales, jax.ShapeDtypeStruct((), jnp.int32)

    return call, arguments, ()


if __name__ == "__main__":
    main()
