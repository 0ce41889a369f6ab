"""Bandwidth of ragged attention, compared with a copy on the same device and with the XLA path.

python -m benchmarks.attention --output results.json

Every call reads another layer of the K/V cache
than the one before, so that the data is not in the device's own caches.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Spread, describe, machine, numbers, say, write_json
from emsjax.cli.markdown import table
from emsjax.loading.named import named_config
from emsjax.pallas_kernels.kv_layout import rows_per_token
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.api import BACKENDS, ragged_attention
from emsjax.pallas_kernels.report.work import Heads, heads_of

HEADER = ("batch", "context", "rows", "K/V MB", "kernel", "ms", "GB/s", "of a copy", "against XLA")


class Setting(NamedTuple):
    """The work of one measurement: the slots, and the tokens and rows of each slot."""

    batch: int
    context: int
    rows: int


class Measured(NamedTuple):
    """Seconds of one layer's attention, for each backend."""

    setting: Setting
    kv_bytes: int
    seconds: dict[str, list[float]]


def main() -> None:
    """Measures, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine() | {"device": jax.devices()[0].device_kind}
    copy = _copy_bandwidth(options)
    say(f"a copy moves {copy / 1e9:.0f} GB/s on {facts['device']}")
    found = [_measure(setting, options) for setting in _settings(options)]
    settings = vars(options) | {"output": options.output.name}
    content = {"benchmark": "attention", "machine": facts, "settings": settings}
    results = [_record(each, copy) for each in found]
    write_json(options.output, content | {"copy_bytes_per_s": copy, "results": results})
    title = f"{options.model}, {options.dtype}, one layer, {facts['device']}"
    title += f"; a copy: {copy / 1e9:.0f} GB/s"
    print("\n\n".join([title, table(HEADER, _rows(results)), describe(facts)]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3-8b", help="a name or a config.json")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--batch-sizes", type=numbers, default=[1, 8, 32, 64])
    parser.add_argument("--contexts", type=numbers, default=[512, 2048, 8192])
    parser.add_argument("--rows", type=numbers, default=[1, 4, 8])
    parser.add_argument(
        "--backends",
        type=lambda text: text.split(","),
        help="names, comma-separated; default: reference and the platform's",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--cache-mb", type=int, default=4096, help="size of the K/V cache, all layers together"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/attention.json"))
    options = parser.parse_args()
    if options.backends is None:
        platform = jax.default_backend()
        options.backends = [name for name in BACKENDS if name in ("reference", platform)]
    return options


def _settings(options: argparse.Namespace) -> Iterator[Setting]:
    product = itertools.product(options.batch_sizes, options.contexts, options.rows)
    return itertools.starmap(Setting, product)


def _copy_bandwidth(options: argparse.Namespace) -> float:
    """Bytes per second that are read and written together in a copy of half the cache's size."""
    count = options.cache_mb * 2**20 // 8
    source = jnp.zeros(count, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = _seconds(functools.partial(copy, source), options.repeats)
    return 2 * source.nbytes / min(seconds)


def _seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call, after one call to compile and one to warm up."""
    for _ in range(2):
        jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return times


def _measure(setting: Setting, options: argparse.Namespace) -> Measured:
    """Times every backend in turn on the same cache."""
    heads, dtype = heads_of(named_config(options.model)), jnp.dtype(options.dtype)
    token_bytes = 2 * heads.num_kv_heads * heads.head_dim * dtype.itemsize
    kv_bytes = setting.batch * setting.context * token_bytes
    num_layers = max(1, min(64, options.cache_mb * 2**20 // kv_bytes))
    rows = rows_per_token(heads.num_kv_heads, heads.head_dim)
    shape = (num_layers, setting.batch, setting.context, rows, LANES)
    cache = jax.random.normal(jax.random.key(0), shape, dtype)
    num_rows = setting.batch * setting.rows
    q = jax.random.normal(jax.random.key(1), (num_rows, heads.num_heads, heads.head_dim), dtype)
    seconds = {}
    for backend in options.backends:
        call = functools.partial(_all_layers(heads, setting, backend), q, cache)
        runs = _seconds(call, options.repeats)
        seconds[backend] = [run / num_layers for run in runs]
        say(f"{setting}: {backend}: {kv_bytes / min(seconds[backend]) / 1e9:.0f} GB/s")
    return Measured(setting, kv_bytes, seconds)


def _all_layers(heads: Heads, setting: Setting, backend: str) -> Callable[..., jax.Array]:
    """A program of one layer's attention after another; each result is the next one's queries."""
    cu_q_lens = np.arange(setting.batch + 1, dtype=np.int32) * setting.rows
    kv_lens = np.full(setting.batch, setting.context, np.int32)

    def layer_after(q: jax.Array, layer: jax.Array, cache: jax.Array) -> tuple[jax.Array, None]:
        out = ragged_attention(
            q,
            cache,
            layer=layer,
            cu_q_lens=cu_q_lens,
            kv_lens=kv_lens,
            num_kv_heads=heads.num_kv_heads,
            max_q_len=setting.rows,
            scale=heads.head_dim**-0.5,
            backend=backend,
        )
        return out, None

    def call(q: jax.Array, cache: jax.Array) -> jax.Array:
        layers = jnp.arange(cache.shape[0], dtype=jnp.int32)
        return jax.lax.scan(functools.partial(layer_after, cache=cache), q, layers)[0]

    return jax.jit(call)


def _record(measured: Measured, copy: float) -> dict[str, Any]:
    """The JSON record of a measurement.

    Attention only reads. Its rate is compared with all bytes that a copy moves, both ways together.
    """
    reference = measured.seconds.get("reference")
    kernels = {}
    for backend, seconds in measured.seconds.items():
        rate = measured.kv_bytes / min(seconds)
        kernels[backend] = {
            "seconds": Spread.of(seconds).record(),
            "bytes_per_s": rate,
            "of_copy": rate / copy,
            "against_reference": min(reference) / min(seconds) if reference else None,
        }
    return {**measured.setting._asdict(), "kv_bytes": measured.kv_bytes, "kernels": kernels}


def _rows(results: list[dict[str, Any]]) -> Iterator[list[str]]:
    for result in results:
        for backend, found in result["kernels"].items():
            ratio = found["against_reference"]
            yield [
                str(result["batch"]),
                str(result["context"]),
                str(result["rows"]),
                f"{result['kv_bytes'] / 1e6:.1f}",
                backend,
                f"{found['seconds']['min'] * 1e3:.3f}",
                f"{found['bytes_per_s'] / 1e9:.1f}",
                f"{found['of_copy']:.0%}",
                f"{ratio:.2f}" if ratio else "-",
            ]


if __name__ == "__main__":
    main()
