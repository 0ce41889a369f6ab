"""Kernels look up what was measured, and fall back to their heuristics; the tool measures it."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels import tuned
from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.layer_matmul import gpu as hopper_product
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.pallas_kernels.ragged_attention.tuning import gpu_blocks, tpu_blocks
from emsjax.pallas_kernels.report.work import MODELS, ragged
from emsjax.pallas_kernels.triton_products import blocks_for
from emsjax.pallas_kernels.tune.__main__ import main
from emsjax.pallas_kernels.tune.candidates import CANDIDATES
from emsjax.pallas_kernels.tune.search import search, seconds_of_call
from emsjax.pallas_kernels.tune.work import expert_jobs, jobs

DEVICE = "NVIDIA A100-SXM4-80GB"
SHAPE = (4096, 4096)
ENTRY = {
    "device": DEVICE,
    "kernel": "layer_matmul/gpu-triton",
    "sizes": {"num_out": 4096, "num_in": 4096},
    "blocks": {"parts": 1},
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Returns a function that makes its arguments the entries of the table, and names the file."""
    file = tmp_path / "tuned.json"
    monkeypatch.setattr(tuned, "FILE", file)

    def write(*entries: dict[str, Any]) -> Path:
        file.write_text(json.dumps(entries))
        tuned.table.cache_clear()
        return file

    yield write
    tuned.table.cache_clear()


def parts(device: str | None = DEVICE, shape: tuple[int, int] = SHAPE) -> int:
    with compiling_for("gpu", "8.0", device):
        return blocks_for(*shape, 8).parts


def test_only_what_was_measured_on_the_device_for_the_shape_replaces_the_heuristics(table):
    table()
    usual = parts()
    assert usual > 1
    table(ENTRY)
    assert parts() == 1
    assert parts("NVIDIA L4") == parts(None) == usual
    assert parts(shape=(4096, 14336)) > 1


def test_what_depends_on_a_tuned_number_follows_it(table):
    sizes = {"num_out": 512, "num_in": 1536, "int8": False}
    table(ENTRY | {"kernel": "layer_matmul/gpu", "sizes": sizes, "blocks": {"parts": 8}})
    with compiling_for("gpu", "9.0", DEVICE):
        assert hopper_product.blocks_for(512, 1536, 8)[1:3] == (64, 8)


def test_an_entry_of_another_kernel_is_an_error(table):
    table(ENTRY | {"blocks": {"kv": 64}})
    with pytest.raises(ValueError, match=r"layer_matmul/gpu-triton has no kv, only parts"):
        parts()


def test_the_table_that_ships_is_sound():
    for each in json.loads(tuned.FILE.read_text()):
        assert each["kernel"] in CANDIDATES
        assert 0 < each["seconds"] < each["heuristic_seconds"]
        assert each["versions"]["jax"]


def asked(call: Callable, *shapes: Any) -> set[tuned.Lookup]:
    with tuned.noting_lookups() as lookups:
        call(*shapes)
    return set(lookups)


def test_no_choice_depends_on_the_number_of_rows():
    """Else a row's bits would depend on its neighbours."""
    cache, product = (4, 8, 2048, 16, 128), (4096, 4096)
    for call, others in (
        (lambda rows: tpu_blocks(cache, 2, 2, 32, rows, 128), {"ragged_attention/tpu"}),
        (lambda rows: gpu_blocks(2048, 128, 4, rows, 64), {"ragged_attention/gpu"}),
        (lambda rows: blocks_for(*product, rows), {"layer_matmul/gpu-triton"}),
        (lambda rows: hopper_product.blocks_for(*product, rows), {"layer_matmul/gpu"}),
    ):
        found = set.union(*(asked(call, rows) for rows in (1, 8, 64)))
        assert {each.kernel for each in found} == others
        assert len(found) == 1


def fake_timer(best: dict[str, int], tried: list[tuple]) -> Callable[..., float]:
    """Returns a timer for which the blocks that have these numbers are fast, others not."""

    def seconds_of(call: Callable, arguments: tuple) -> float:
        with tuned.noting_lookups() as lookups:
            jax.eval_shape(call, *arguments)
        (lookup,) = set(lookups)
        used = tuned.tuned(*lookup)
        tried.append(used)
        if used.parts == 16:
            raise RuntimeError("the compiler refuses this")
        return 1e-3 if best.items() <= used._asdict().items() else 2e-3

    return seconds_of


def product(layer: jax.Array, x: jax.Array, kernels: jax.Array) -> jax.Array:
    return layer_matmul(x, kernels, layer=layer)


def product_arguments() -> tuple[Any, ...]:
    x = jax.ShapeDtypeStruct((8, 4096), jnp.bfloat16)
    return 2, x, jax.ShapeDtypeStruct((2, *SHAPE), jnp.bfloat16)


def test_the_fastest_candidate_is_found_and_what_fails_is_passed_over():
    tried: list[Any] = []
    with compiling_for("gpu", "8.0", DEVICE):
        (found,) = search(product, product_arguments(), fake_timer({"parts": 2}, tried))
    assert (found.blocks, found.seconds, found.heuristic_seconds) == ({"parts": 2}, 1e-3, 2e-3)
    assert found.failed == 1
    # The heuristics' first, then each candidate once.
    assert [each.parts for each in tried] == [4, 1, 2, 8, 16, 32]


def test_what_is_not_clearly_faster_is_not_chosen():
    with compiling_for("gpu", "8.0", DEVICE):
        (found,) = search(product, product_arguments(), fake_timer({}, []))
    assert not found.blocks


@pytest.mark.parametrize(
    ("platform", "capability", "kernels"),
    [
        ("tpu", None, {"ragged_attention/tpu", "expert_matmul/tpu"}),
        ("gpu", "9.0", {"ragged_attention/gpu", "layer_matmul/gpu"}),
        ("gpu", "8.0", {"ragged_attention/gpu-triton", "layer_matmul/gpu-triton"}),
        ("gpu", "7.5", set()),
    ],
)
def test_every_kernel_of_a_platform_is_tuned(platform, capability, kernels):
    """Traced with shapes alone; `work` makes arrays of them on a device."""
    work = ragged(MODELS["smollm2-135m"], 8, 8, 2048)
    found = set()
    with compiling_for(platform, capability):
        for job in (*jobs("smollm2-135m", work), *expert_jobs(work)):
            shapes = jax.eval_shape(job.arguments)
            with tuned.noting_lookups() as lookups:
                # A new function, because jax would not trace a known one again.
                jax.eval_shape(functools.partial(job.call), *shapes)
            found |= {each.kernel for each in lookups}
    assert found == kernels
    assert found <= set(CANDIDATES)


def test_the_timer_runs_the_call_with_each_layer():
    x = jnp.ones((8, 16), jnp.float32)
    seconds = seconds_of_call(product, (2, x, jnp.ones((2, 8, 16), jnp.float32)))
    assert 0 < seconds < 1


def test_the_command_writes_a_table_that_kernels_then_use(table, monkeypatch, capsys):
    file = table(ENTRY | {"device": "another"})
    module = "emsjax.pallas_kernels.tune.__main__"
    monkeypatch.setattr(f"{module}.jobs", lambda *_: [])
    monkeypatch.setattr(
        f"{module}.expert_jobs",
        lambda _: [type("Job", (), {"name": "n", "call": product, "arguments": product_arguments})],
    )
    with compiling_for("gpu", "8.0", DEVICE):
        for _ in range(2):  # the second run replaces the entry of the first
            main(["--models", "smollm2-135m", "--output", str(file)], fake_timer({"parts": 2}, []))
    assert "parts 2: 2000.0 to 1000.0 µs; 1 candidates failed" in capsys.readouterr().err
    kept, entry = json.loads(file.read_text())
    assert kept["device"] == "another"
    assert (entry["blocks"], entry["heuristic"]) == ({"parts": 2}, {"parts": 4})
    assert {"jax", "jaxlib"} <= set(entry["versions"])
    tuned.table.cache_clear()
    assert parts() == 2


def test_on_a_cpu_there_is_nothing_to_tune(table):
    with pytest.raises(SystemExit, match="run this on a TPU or GPU"):
        main(["--output", str(table())])


@pytest.mark.parametrize("split", [1, 2, 4])
def test_candidates_change_no_sum_but_its_order(split: int, interpreting_triton: None):
    rng = np.random.default_rng(0)
    x, kernels = rng.standard_normal((8, 512)), rng.standard_normal((2, 64, 512))
    x, kernels = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernels, jnp.bfloat16)
    with tuned.trying("layer_matmul/gpu-triton", {"parts": split}):
        out = layer_matmul(x, kernels, layer=jnp.int32(1), dtype=jnp.float32, backend="gpu-triton")
    expected = x.astype(jnp.float32) @ kernels[1].astype(jnp.float32).T
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)
