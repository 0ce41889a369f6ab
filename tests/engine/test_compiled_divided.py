"""The program that devices share compiles for TPU hosts, with the kernels, and copies no cache."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from emsjax.engine.devices import Devices
from emsjax.engine.engine import Engine
from emsjax.loading.build import shape_of_model
from emsjax.models.config import DecoderConfig, Rope
from emsjax.pallas_kernels.ahead import compile_lowered, on_devices
from tests.engine.collectives import (
    check_no_copy_of_the_share,
    check_no_copy_of_weights,
    collectives,
    expected_collectives,
)
from tests.engine.setup import make_engine
from tests.engine.switches import PLAIN
from tests.ladders import one_rung

pytestmark = pytest.mark.usefixtures("no_compile_cache")
SLOW = pytest.mark.slow
# Layers of Llama-3-8B.
WIDE = replace(
    PLAIN,
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=2,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    tied=False,
    rope=Rope((0.1,) * 64),
)


def compile_divided(
    chip: str,
    number: int,
    drafter: str = "prompt-lookup",
    config: DecoderConfig = PLAIN,
    *,
    sampling: bool = False,
) -> tuple[Engine, jax.stages.Compiled]:
    """Compiles the decode program of one rung for devices that share a model."""
    with on_devices(chip, number) as mesh:
        devices = Devices(mesh)
        model = shape_of_model(config, jnp.dtype(jnp.bfloat16), devices=devices)
        engine = make_engine(
            model, drafter, 8, capacity=2048, costs=1.0, devices=devices, make=one_rung
        )
        return engine, compile_lowered(chip, engine.lower(sampling=sampling))


@pytest.mark.parametrize(
    ("chip", "number", "drafter", "sampling"),
    [
        ("v5e", 4, "prompt-lookup", False),
        pytest.param("v5e", 8, "prompt-lookup", False, marks=SLOW),
        pytest.param("v6e", 8, "prompt-lookup", False, marks=SLOW),
        pytest.param("v5p", 4, "prompt-lookup", False, marks=SLOW),
        pytest.param("v5p", 8, "prompt-lookup", False, marks=SLOW),
        pytest.param("v5e", 4, "combined", True, marks=SLOW),
    ],
)
def test_chips_of_a_tpu(chip: str, number: int, drafter: str, sampling: bool):
    """With eight chips, two share a key/value head."""
    engine, compiled = compile_divided(chip, number, drafter, sampling=sampling)
    text = compiled.as_text()
    for kernel in ("ragged_attention", "split_heads", "residual_norm"):
        assert f"%{kernel}" in text
    check_no_copy_of_the_share(engine, compiled, "custom-call", 28_000_000 if sampling else 0)
    if not sampling:
        assert collectives(text) == expected_collectives(engine, number, PLAIN)
        check_no_copy_of_weights(engine, compiled)
    assert jax.default_backend() == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_layers_of_a_real_model_on_eight_chips(chip: str):
    engine, compiled = compile_divided(chip, 8, config=WIDE)
    check_no_copy_of_the_share(engine, compiled, "custom-call", config=WIDE)
    check_no_copy_of_weights(engine, compiled)
    assert collectives(compiled.as_text()) == expected_collectives(engine, 8, WIDE)
