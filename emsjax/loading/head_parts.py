"""A published head as its files describe it, and how its tensors are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.load import LoadedModel
from emsjax.loading.opened import name_of
from emsjax.loading.parameters import plan_parameters
from emsjax.loading.parts import Division
from emsjax.loading.sources.source import TensorSource
from emsjax.loading.weights import load_params
from emsjax.models.family import WeightMap, dotted
from emsjax.models.quantised import picked_floats

# Rows of an embedding that are compared at a time.
_ROWS = 4096
# Copies in another dtype differ by less, in the norm; embeddings of different models by far more.
ROUNDING, ANOTHER = 0.02, 0.5


class Head(NamedTuple):
    """A head whose weights have not been read yet.

    Attributes:
      kind: one of the names in `head_kind`.
      directory: where it is.
      config: its `config.json`; empty if it has none.
      source: its tensors.
      names: their names by the names without prefix.
    """

    kind: str
    directory: Path
    config: Mapping[str, Any]
    source: TensorSource
    names: Mapping[str, str]

    @property
    def label(self) -> str:
        """What a drafter made of it is called."""
        return f"{name_of(self.directory)} ({self.kind})"

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor by its name without prefix; empty if there is none."""
        return self.source.shapes()[self.names[name]] if name in self.names else ()

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor by its name without prefix."""
        return self.source.read(self.names[name])


def read_head(
    head: Head,
    make: Callable[[], nnx.Module],
    weight_map: WeightMap,
    target: LoadedModel,
    wrong: Sequence[str],
) -> tuple[Any, Any]:
    """Returns the definition and the parameters of a head, which all of the target's devices have.

    Args:
      head: the head.
      make: makes a module of its form.
      weight_map: the tensors of the module's parameters.
      target: the model to draft for.
      wrong: what does not fit the target.

    Raises:
      UserError: it does not fit, or is not whole; all that is wrong is in one message.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(make))
    shapes = {dotted(path): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(abstract)}
    try:
        parameters = plan_parameters(shapes, weight_map, head.source)
    except UserError as error:
        if not wrong:
            raise
        wrong = [*wrong, str(error).partition("; check")[0]]
    if wrong:
        raise UserError(
            f"the {head.kind} head {head.directory} does not fit {target.name}: "
            f"{'; '.join(wrong)}; use a head that was trained for {target.name}"
        )
    dtype = target.model.dtype
    division = Division(target.devices)
    return graphdef, load_params(abstract, parameters, head.source, dtype, division)


def embedding_difference(tokens: np.ndarray, target: LoadedModel) -> float:
    """Returns how much an embedding [V, D] differs from the target's, as a share of its norm."""
    theirs, devices = target.model.embedding_kernel, target.devices
    apart = whole = 0.0
    for first in range(0, len(tokens), _ROWS):
        rows = np.arange(first, min(first + _ROWS, len(tokens)))
        ours = np.asarray(devices.to_all(picked_floats(theirs, rows)), np.float32)
        found = tokens[rows].astype(np.float32)
        apart += float(np.square(found - ours).sum())
        whole += float(np.square(ours).sum())
    return (apart / whole) ** 0.5 if whole else 1.0


def wrong_ids(name: str, ids: np.ndarray, vocab_size: int) -> Iterator[str]:
    """Yields what is wrong with a table of the tokens that a head can guess."""
    if ids.min() < 0 or ids.max() >= vocab_size or len(np.unique(ids)) < len(ids):
        yield f"its table {name} names tokens that do not exist, or some of them twice"


def wrong_layers(ids: Sequence[int], num_layers: int) -> Iterator[str]:
    """Yields what is wrong with the layers whose inputs a head reads."""
    if any(not 0 <= number < num_layers for number in ids):
        numbers = ", ".join(map(str, ids))
        yield f"it reads the inputs of the layers {numbers}, of which there are {num_layers}"
