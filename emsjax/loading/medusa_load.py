"""Loads Medusa heads in the layouts of Medusa's own repository and of vLLM."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.drafters.medusa import Medusa, Parts
from emsjax.engine.devices import bytes_of_device
from emsjax.errors import UserError
from emsjax.loading.head_kind import PREFIXES
from emsjax.loading.head_parts import Head, read_head, wrong_ids
from emsjax.loading.load import LoadedModel
from emsjax.models.family import Rule, WeightMap, affine, rule
from emsjax.models.medusa_heads import MedusaConfig, MedusaHeads

_MAP = "token_map"


class Layout(NamedTuple):
    """The names of a checkpoint's tensors, without ".weight"; `{}` stands for numbers.

    Attributes:
      layer: layer of a head, by the numbers of both.
      output: output projection, by the head's number and the number of layers.
    """

    layer: str
    output: str


_MEDUSA, _VLLM = (
    Layout("{0}.{1}.linear", "{0}.{1}"),
    Layout("blocks.{0}.layers.{1}", "lm_heads.{0}"),
)


def load_medusa(head: Head, target: LoadedModel, draft_length: int, narrowest: int) -> Medusa:
    """Reads the heads and returns the drafter; see `head_load.load_head`."""
    del narrowest
    model, layout = target.model, _layout(head)
    config = _read_form(head, layout)
    ids, wrong = _vocabulary(head, config, model.vocab_size)
    width = model.embedding_kernel.shape[1]
    if config.hidden_size != width:
        wrong.insert(0, f"it reads hidden states of size {config.hidden_size}, not {width}")
    weight_map = _weights(head, layout, config)
    graphdef, params = read_head(
        head, lambda: MedusaHeads(config, rngs=nnx.Rngs(0)), weight_map, target, wrong
    )
    return Medusa(
        name=head.label,
        weights=Parts(params, None if ids is None else jnp.asarray(ids)),
        merge=lambda params: nnx.merge(graphdef, params),
        vocab_size=model.vocab_size,
        hidden_size=width,
        num_heads=config.num_heads,
        read_bytes=bytes_of_device(params),
        draft_length=draft_length,
    )


def _layout(head: Head) -> Layout:
    return _VLLM if any(_numbers(head, _VLLM)) else _MEDUSA


def _read_form(head: Head, layout: Layout) -> MedusaConfig:
    """Returns the form of heads by their tensors; what configurations say is often wrong."""
    found = set(_numbers(head, layout))
    heads, layers = (1 + max(numbers) for numbers in zip(*found, strict=True))
    if len(found) < heads * layers:
        raise UserError(
            f"the Medusa heads {head.directory} are damaged: by their numbers there are {heads} of "
            f"{layers} layers each, of which {len(found)} layers are there; download them again"
        )
    first = layout.layer.format(0, 0)
    bias = f"{first}.bias" in head.names
    one = heads > 1 and _output(head, layout, 1, layers) not in head.names
    output = head.shape(_output(head, layout, 0, layers)) or (0, 0)
    shape = head.shape(f"{first}.weight") or (0, 0)
    return MedusaConfig(shape[-1], heads, layers, output[0], bias, one and layout == _VLLM)


def _numbers(head: Head, layout: Layout) -> Iterator[tuple[int, int]]:
    """Yields the numbers of head and layer of each layer's kernel."""
    pattern = re.escape(f"{layout.layer}.weight")
    pattern = re.sub(r"\\\{\d\\\}", r"(\\d+)", pattern)
    for name in head.names:
        if match := re.fullmatch(pattern, name):
            yield int(match[1]), int(match[2])


def _output(head: Head, layout: Layout, number: int, layers: int) -> str:
    name = f"{layout.output.format(number, layers)}.weight"
    # vLLM has one name more for an output projection that all heads share.
    return name if name in head.names or layout == _MEDUSA or number else _shared(head, name)


def _shared(head: Head, name: str) -> str:
    return "lm_head.weight" if "lm_head.weight" in head.names else name


def _vocabulary(
    head: Head, config: MedusaConfig, vocab_size: int
) -> tuple[np.ndarray | None, list[str]]:
    """Returns the tokens that the heads can guess, None for all, and what is wrong."""
    size = config.head_size
    if size in (0, vocab_size):  # without outputs, the tensors that are missing are listed
        return None, []
    if _MAP not in head.names:
        return None, [f"it guesses {size} tokens, not {vocab_size}"]
    ids = head.read(_MAP)
    if ids.shape != (size,) or not np.issubdtype(ids.dtype, np.integer):
        return None, [f"its table {_MAP} is not one of {size} whole numbers"]
    return ids.astype(np.int32), list(wrong_ids(_MAP, ids, vocab_size))


def _weights(head: Head, layout: Layout, config: MedusaConfig) -> WeightMap:
    """Returns the weight map."""
    rules: dict[str, Rule] = {}
    for number in range(config.num_heads):
        for place in range(config.num_layers):
            name = layout.layer.format(number, place)
            rules |= affine(f"heads.{number}.layers.{place}", name, bias=config.bias)
    for number in range(1 if config.one_output else config.num_heads):
        name = _output(head, layout, number, config.num_layers)
        rules[f"outputs.{number}.kernel"] = rule(name)
    return WeightMap(rules, (_MAP,), PREFIXES)
