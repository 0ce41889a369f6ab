"""Time of the products of a layer on a CPU by type of the weights and number of rows.

python -m benchmarks.cpu_products --output results.json

Each product goes through stacks of 30 layers, which caches cannot hold. All types take turns.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Spread, describe, machine, numbers, say, write_json
from emsjax.cli.markdown import table
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.pallas_kernels.quantised import Grouped, Quantised, Weights

LAYERS, GROUP = 30, 32
TYPES = ("float32", "bfloat16", "int8", "int4")


def main() -> None:
    """Measures, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine()
    seconds: dict[tuple[int, str], list[float]] = {}
    stacks = {kind: _weights(kind, options.outputs, options.inputs) for kind in TYPES}
    for turn in range(options.repeats):
        for rows in options.rows:
            x = jnp.asarray(np.random.default_rng(rows).normal(size=(rows, options.inputs)))
            for kind, weights in stacks.items():
                found = _time(x.astype(jnp.float32), weights)
                seconds.setdefault((rows, kind), []).append(found)
        say(f"turn {turn + 1} of {options.repeats}")
    records = [
        {"rows": rows, "weights": kind, "seconds": Spread.of(found).record()}
        for (rows, kind), found in seconds.items()
    ]
    written = vars(options) | {"output": options.output.name}
    content = {"benchmark": "cpu_products", "machine": facts, "settings": written}
    write_json(options.output, content | {"results": records})
    lines = [
        [str(rows), *(f"{1e3 * np.median(seconds[rows, kind]):.1f}" for kind in TYPES)]
        for rows in options.rows
    ]
    print(
        "\n\n".join([table(("rows", *(f"{kind}, ms" for kind in TYPES)), lines), describe(facts)])
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=int, default=3072)
    parser.add_argument("--inputs", type=int, default=576)
    parser.add_argument("--rows", type=numbers, default=[1, 4, 8, 16, 64, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu_products.json"))
    return parser.parse_args()


def _weights(kind: str, num_out: int, num_in: int) -> Weights:
    """Returns random weights of all layers."""
    rng, shape = np.random.default_rng(0), (LAYERS, num_out, num_in)
    if kind == "int8":
        scale = jnp.ones(shape[:2], jnp.float32)
        return Quantised(jnp.asarray(rng.integers(-127, 128, shape), jnp.int8), scale)
    if kind == "int4":
        scales = jnp.ones((LAYERS, num_in // GROUP, num_out), jnp.float32)
        return Grouped(jnp.asarray(rng.integers(-8, 8, shape), jnp.int4), scales)
    return jnp.asarray(rng.normal(size=shape), jnp.dtype(kind))


def _time(x: jax.Array, weights: Weights, times: int = 5) -> float:
    """Returns the least seconds of several runs; another process may be in the way."""

    def multiply(x: jax.Array, weights: Weights) -> jax.Array:
        def add(layer: jax.Array, sums: jax.Array) -> jax.Array:
            return sums + layer_matmul(x, weights, layer=layer)

        start = jnp.zeros((x.shape[0], weights.shape[1]), x.dtype)
        return jax.lax.fori_loop(0, LAYERS, add, start)

    program = jax.jit(multiply)
    found = []
    for _ in range(times + 1):
        started = time.perf_counter()
        jax.block_until_ready(program(x, weights))
        found.append(time.perf_counter() - started)
    return min(found[1:])  # the first one compiles


if __name__ == "__main__":
    main()
