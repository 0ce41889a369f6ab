"""The decode program of every family, few layers of its built-in configuration, for v5e or v6e.

`test_compiled` compiles every switch, but not with the heads, windows and rotary tables that
families combine them with.
"""

from dataclasses import replace
from itertools import cycle

import pytest

from emsjax.loading.named import named_config
from emsjax.loading.published import PUBLISHED
from emsjax.models.config import DecoderConfig
from emsjax.models.registry import FAMILIES
from tests.engine.test_compiled import (
    check_no_copy_of_the_cache,
    check_no_kernel_is_copied,
    compile_for_tpu,
)
from tests.ladders import one_rung

pytestmark = pytest.mark.usefixtures("no_compile_cache")

# The most layers after which a pattern of windows repeats.
LAYERS, QUICK = 6, "falcon"
# Each for one TPU: to compile all of them for both would take minutes more.
CASES = list(zip(cycle(("v5e", "v6e")), FAMILIES, strict=False))
BUILT_IN = {config["model_type"]: name for name, config in PUBLISHED.items()}


def of_family(name: str) -> DecoderConfig:
    """Returns the first layers of a family's configuration, narrow but for the heads."""
    config = named_config(BUILT_IN[name])
    experts = config.experts
    return replace(
        config,
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1024,
        num_layers=LAYERS,
        max_positions=min(config.max_positions, 8192),
        windows=config.windows[:LAYERS],
        layer_ropes=config.layer_ropes[:LAYERS],
        experts=experts and replace(experts, number=8, per_row=2, width=256),
    )


def test_every_family_has_a_built_in_configuration():
    assert BUILT_IN.keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("generation", "family"),
    [pytest.param(*case, marks=() if case[1] == QUICK else pytest.mark.slow) for case in CASES],
)
def test_tpu(generation: str, family: str):
    engine, compiled = compile_for_tpu(generation, "none", of_family(family), make=one_rung)
    check_no_copy_of_the_cache(engine, compiled, "tpu")
    check_no_kernel_is_copied(engine, compiled)
