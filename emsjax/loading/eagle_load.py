"""Loads a published head as a drafter for a target."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.drafters.eagle import Eagle, Parts
from emsjax.errors import UserError
from emsjax.loading.eagle_fit import Vocabulary, layers_read, sizes_that_differ, vocabulary
from emsjax.loading.eagle_form import Form, read_form
from emsjax.loading.eagle_kind import PREFIXES, check_no_medusa, kind_of
from emsjax.loading.eagle_tensors import head_weights
from emsjax.loading.hf.config import read_json
from emsjax.loading.load import LoadedModel
from emsjax.loading.opened import name_of
from emsjax.loading.parameters import bare, plan_parameters
from emsjax.loading.parts import Division
from emsjax.loading.sources.source import TensorSource, open_directory
from emsjax.loading.weights import load_params
from emsjax.models.eagle_head import EagleConfig, EagleHead
from emsjax.models.family import dotted


class Head(NamedTuple):
    """A head whose weights have not been read yet.

    Attributes:
      kind: "EAGLE-1" or "EAGLE-3".
      directory: where it is.
      form: what it is.
      source: its tensors.
      names: their names by the names without prefix.
    """

    kind: str
    directory: Path
    form: Form
    source: TensorSource
    names: dict[str, str]


def find_head(directory: Path) -> Head | None:
    """Returns the head in a directory; None if there is something else.

    Raises:
      UserError: it is damaged, or of a kind that is not supported.
    """
    if not (directory / "config.json").is_file():
        return None
    config = read_json(directory / "config.json")
    check_no_medusa(directory)
    source = open_directory(directory)
    names = {bare(name, PREFIXES): name for name in source.shapes()}
    kind = kind_of(names, config, str(directory))
    if kind is None:
        return None
    form = read_form(kind, config, frozenset(names), directory)
    return Head(kind, directory, form, source, names)


def load_head(head: Head, target: LoadedModel, draft_length: int, narrowest: int) -> Eagle:
    """Reads a head and returns the drafter.

    Args:
      head: the head.
      target: the model to draft for.
      draft_length: k.
      narrowest: see `Eagle.narrowest`.

    Raises:
      UserError: it does not fit the target, or is not whole; all that is wrong is in one message.
    """
    model = target.model
    wrong = list(sizes_that_differ(head.form, target))
    found = Vocabulary(None, False)
    if not wrong and not head.source.truncated:
        found, wrong = vocabulary(head.form, head.source, head.names, target)
    config = dataclasses.replace(head.form.config, own_embedding=found.own_embedding)
    graphdef, params = _read(head, config, model.dtype, wrong, target.name)
    target_def, target_params = nnx.split(model)

    def merge(head: Any, target: Any) -> tuple[Any, Any]:
        return nnx.merge(graphdef, head), nnx.merge(target_def, target) if target else None

    ids = None if found.token_ids is None else jnp.asarray(found.token_ids)
    own, borrowed = _nbytes(params), 0 if config.head_size else _nbytes(model.output_kernel)
    looked_up = _nbytes(params["tokens"]) if config.own_embedding else 0
    return Eagle(
        name=f"{name_of(head.directory)} ({head.kind})",
        weights=Parts(
            params, model.embedding_kernel, ids, {} if config.head_size else target_params
        ),
        merge=merge,
        vocab_size=model.vocab_size,
        hidden_size=config.layers.hidden_size,
        hidden_layers=layers_read(head.form, model.num_layers),
        read_bytes=own + borrowed - looked_up,
        draft_length=draft_length,
        narrowest=narrowest,
    )


def _read(
    head: Head, config: EagleConfig, dtype: Any, wrong: list[str], target: str
) -> tuple[Any, Any]:
    """Returns the definition and the parameters of a head.

    Args:
      head: the head.
      config: its form, with what has been found out about its embedding.
      dtype: of the parameters.
      wrong: what does not fit the target.
      target: the target's name.
    """
    made = nnx.eval_shape(lambda: EagleHead(config, rngs=nnx.Rngs(0), dtype=dtype))
    graphdef, abstract = nnx.split(made)
    shapes = {dotted(path): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(abstract)}
    weight_map = head_weights(head.form._replace(config=config))
    try:
        parameters = plan_parameters(shapes, weight_map, head.source)
    except UserError as error:
        if not wrong:
            raise
        wrong = [*wrong, str(error).partition("; check")[0]]
    if wrong:
        raise UserError(
            f"the {head.kind} head {head.directory} does not fit {target}: {'; '.join(wrong)}; use "
            f"a head that was trained for {target}"
        )
    return graphdef, load_params(abstract, parameters, head.source, dtype, Division())


def _nbytes(arrays: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(arrays))
