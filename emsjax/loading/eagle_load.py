"""Loads an EAGLE head as a drafter for a target."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from emsjax.drafters.eagle import Eagle, Parts
from emsjax.engine.devices import ONE, bytes_of_device
from emsjax.loading.eagle_fit import Vocabulary, layers_read, sizes_that_differ, vocabulary
from emsjax.loading.eagle_form import read_form
from emsjax.loading.eagle_tensors import head_weights
from emsjax.loading.head_parts import Head, read_head
from emsjax.loading.load import LoadedModel
from emsjax.models.eagle_head import EagleHead


def load_eagle(head: Head, target: LoadedModel, draft_length: int, narrowest: int) -> Eagle:
    """Reads a head and returns the drafter; see `head_load.load_head`."""
    model = target.model
    form = read_form(head.kind, head.config, frozenset(head.names), head.directory)
    wrong = list(sizes_that_differ(form, target))
    found = Vocabulary(None, False)
    if not wrong and not head.source.truncated:
        found, wrong = vocabulary(form, head, target)
    config = dataclasses.replace(form.config, own_embedding=found.own_embedding)
    graphdef, params = read_head(
        head,
        lambda: EagleHead(config, rngs=nnx.Rngs(0), dtype=model.dtype),
        head_weights(form._replace(config=config)),
        target,
        wrong,
    )
    target_def, target_params = nnx.split(model)

    def merge(head: Any, target: Any) -> tuple[Any, Any]:
        return nnx.merge(graphdef, head), nnx.merge(target_def, target) if target else None

    ids = None if found.token_ids is None else jnp.asarray(found.token_ids)
    output = params["head"] if config.head_size else model.output_kernel
    borrowed = () if config.head_size else output
    # Rows are looked up in the one, and only the target's states go through the other.
    not_in_a_pass = (
        params["tokens"] if config.own_embedding else (),
        params["fc"] if config.fused else (),
    )
    not_observed = (not_in_a_pass[0], params["head"] if config.head_size else ())
    return Eagle(
        name=head.label,
        weights=Parts(
            params, model.embedding_table, ids, {} if config.head_size else target_params
        ),
        merge=merge,
        vocab_size=model.vocab_size,
        hidden_size=config.layers.hidden_size,
        hidden_layers=layers_read(form, model.num_layers),
        read_bytes=bytes_of_device((params, borrowed)) - bytes_of_device(not_in_a_pass),
        output_bytes=bytes_of_device(output),
        observed_bytes=bytes_of_device(params) - bytes_of_device(not_observed),
        draft_length=draft_length,
        narrowest=narrowest,
        # A head with a projection of its own has it on every device.
        vocabulary=(ONE if config.head_size else target.devices).vocabulary(model.vocab_size),
    )
