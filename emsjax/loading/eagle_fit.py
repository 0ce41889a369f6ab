"""Checks that an EAGLE head fits a target."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from emsjax.loading.eagle_form import Form
from emsjax.loading.head_parts import (
    ANOTHER,
    ROUNDING,
    Head,
    embedding_difference,
    wrong_ids,
    wrong_layers,
)
from emsjax.loading.load import LoadedModel


class Vocabulary(NamedTuple):
    """What of a head's vocabulary is not the target's.

    Attributes:
      token_ids: int32[Vd], the tokens that the head can guess; None if it can guess all, in order.
      own_embedding: whether the head's embedding is another one than the target's.
    """

    token_ids: np.ndarray | None
    own_embedding: bool


def sizes_that_differ(form: Form, target: LoadedModel) -> Iterator[str]:
    """Yields what of a head's sizes does not fit the target."""
    config, model = form.config, target.model
    # EAGLE-1 reads final states, which are as wide as the embedding.
    width = model.hidden_size if config.fused else model.embedding_kernel.shape[1]
    if config.target_size != width:
        yield f"it reads hidden states of size {config.target_size}, not {width}"
    if not config.fused and config.layers.hidden_size != width:
        yield f"its own are of size {config.layers.hidden_size}"
    if config.layers.vocab_size != model.vocab_size:
        yield f"its vocabulary has {config.layers.vocab_size} tokens, not {model.vocab_size}"
    yield from wrong_layers(layers_read(form, model.num_layers), model.num_layers)
    ours = tuple(target.hf_config.get("architectures") or ())
    # The text part of a multimodal model may go by another name.
    plain = all(name.endswith("ForCausalLM") for name in (*form.architectures, *ours))
    if form.architectures and ours and plain and not set(form.architectures) & set(ours):
        yield f"it was trained for a {form.architectures[0]}, not a {ours[0]}"


def layers_read(form: Form, num_layers: int) -> tuple[int, ...]:
    """Returns the target's layers whose inputs a head reads; empty for its final states."""
    if not form.config.fused:
        return ()
    # EAGLE's own choice.
    return form.layer_ids or (2, num_layers // 2, num_layers - 3)


def vocabulary(form: Form, head: Head, target: LoadedModel) -> tuple[Vocabulary, list[str]]:
    """Returns a head's vocabulary, and what does not fit the target's.

    Args:
      form: of a head whose sizes fit.
      head: it, without truncated tensors.
      target: the target.
    """
    config = form.config
    ids: np.ndarray | None = None
    wrong: list[str] = []
    if config.head_size:
        ids, wrong = _token_ids(config.head_size, head, target.model.vocab_size)
    width, theirs = config.layers.hidden_size, target.model.embedding_kernel
    if "embed_tokens.weight" not in head.names:
        if width != theirs.shape[1]:
            wrong.append(f"it has no embedding of width {width}, and the target's is another")
        return Vocabulary(ids, False), wrong
    tokens = head.read("embed_tokens.weight")
    # The loader checks its shape. Devices that share the target's have further rows.
    if tokens.shape != (target.model.vocab_size, theirs.shape[1]):
        return Vocabulary(ids, True), wrong
    difference = embedding_difference(tokens, target)
    if difference > ANOTHER:
        wrong.append("its embedding is that of another model")
    return Vocabulary(ids, difference > ROUNDING), wrong


def _token_ids(size: int, head: Head, vocab_size: int) -> tuple[np.ndarray | None, list[str]]:
    """Returns the tokens that a head can guess, from a table of offsets; and what is wrong."""
    if "d2t" not in head.names:
        missing = f"it guesses {size} tokens and has no table d2t that says which"
        return None, [missing] if size != vocab_size else []
    offsets = head.read("d2t")
    if offsets.shape != (size,) or not np.issubdtype(offsets.dtype, np.integer):
        return None, [f"its table d2t is not one of {size} whole numbers"]
    ids = np.arange(size, dtype=np.int64) + offsets
    every = size == vocab_size and not offsets.any()
    return None if every else ids.astype(np.int32), list(wrong_ids("d2t", ids, vocab_size))
