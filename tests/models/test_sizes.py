"""Sizes by arithmetic, compared with those of the decoder itself."""

import math
from dataclasses import replace

import jax.numpy as jnp
import pytest

from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config
from emsjax.models.linear import Linear
from emsjax.models.quantised import in_groups
from emsjax.models.sizes import decoder_sizes, grouped_sizes
from emsjax.pallas_kernels.backends import compiling_for

# With experts, and with inputs that are no multiple of 128.
IN_4_BITS = ("llama-3-8b", "opt-6.7b", "smollm2-135m", "qwen3-30b-a3b", "gemma-2-2b")
NAMES = ("opt-125m", "opt-350m", "gpt2", "llama-3-8b", "smollm2-135m", "qwen2.5-0.5b", "qwen3-8b")
NAMES += ("qwen3-30b-a3b", "mixtral-8x7b", "olmoe-1b-7b", "gpt-oss-20b")
NAMES += ("gemma-2-2b", "gemma-3-4b", "olmo-2-1b", "pythia-160m", "command-r7b", "phi-2")
NAMES += ("command-r-plus", "falcon-40b", "minitron-4b")
CHANGES = ({"tied": False}, {"tied": True, "qkv_bias": True}, {"out_bias": True, "mlp_bias": True})
CHANGES += ({"qk_norm": "head"}, {"qk_norm": "each"})


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_decoder(name: str):
    for number, change in enumerate(({}, *CHANGES)):
        config = replace(named_config(name), **change)
        dtype, platform = (("bfloat16", "tpu"), ("float32", "gpu"))[number % 2]
        for kinds in ((None, None), ("int8", "int8"), ("int4", None)):  # of weights and cache
            with compiling_for(platform):
                built = shape_of_model(config, jnp.dtype(dtype), *kinds).sizes
            itemsize = jnp.dtype(dtype).itemsize
            assert decoder_sizes(config, itemsize, platform, *kinds) == built


@pytest.mark.parametrize("name", IN_4_BITS)
def test_4_bit_weights_that_a_kernel_reads(name: str):
    config = named_config(name)
    model = shape_of_model(config, jnp.dtype("bfloat16"), "int4")
    # Experts have a kernel of their own.
    plain = [each for each in in_groups(model).values() if isinstance(each, Linear)]
    products = [each for each in plain if each.kernel.shape[-1] % 128 == 0]
    weights = sum(math.prod(each.kernel.shape) for each in products)
    scales = sum(math.prod(each.kernel_scales.shape) for each in products)
    assert grouped_sizes(config) == (weights // 2 + 4 * scales, 2 * weights)
