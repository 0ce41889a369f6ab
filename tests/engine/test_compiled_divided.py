"""The program that devices share compiles for TPU hosts, with the kernels, and copies no cache."""

import jax
import jax.numpy as jnp
import pytest

from emsjax.engine.devices import Devices
from emsjax.loading.build import shape_of_model
from emsjax.pallas_kernels.ahead import on_topology
from tests.engine.collectives import check_no_copy_of_the_share, collectives
from tests.engine.setup import make_engine
from tests.engine.switches import PLAIN
from tests.ladders import one_rung

pytestmark = pytest.mark.usefixtures("no_compile_cache")
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("topology", "drafter", "sampling"),
    [
        ("v5e:2x2", "prompt-lookup", False),
        pytest.param("v5e:2x4", "prompt-lookup", False, marks=SLOW),
        pytest.param("v6e:2x4", "prompt-lookup", False, marks=SLOW),
        pytest.param("v5p:2x2x1", "prompt-lookup", False, marks=SLOW),
        pytest.param("v5e:2x2", "combined", True, marks=SLOW),
    ],
)
def test_chips_of_a_tpu(topology: str, drafter: str, sampling: bool):
    """With eight chips, two share a key/value head."""
    with on_topology(topology) as mesh:
        devices = Devices(mesh)
        model = shape_of_model(PLAIN, jnp.dtype(jnp.bfloat16), devices=devices)
        engine = make_engine(
            model, drafter, 8, capacity=2048, costs=1.0, devices=devices, make=one_rung
        )
        compiled = engine.lower(sampling=sampling).compile()
    text = compiled.as_text()
    for kernel in ("ragged_attention", "update_kv_cache"):
        assert f"%{kernel}" in text
    check_no_copy_of_the_share(engine, compiled, "custom-call", 28_000_000 if sampling else 0)
    if not sampling:
        rows = engine.ladder[0].capacity
        assert collectives(text) == {
            f"all-reduce bf16[{rows},{PLAIN.hidden_size}]": 3,
            f"all-gather s32[{mesh.size},2,{rows}]": 1,
        }
    assert jax.default_backend() == "cpu"
