"""Forced acceptance: the real computation of a model whose text and drafts are made up.

No drafter can guess what a model with random weights writes. So the text is a script, known
beforehand, and for each place in it a table holds how many tokens are drafted and how many of them
are right. The target computes everything a real one would, logits included, and then the script
decides the token. The table is indexed by places in the script rather than by steps: methods that
cut drafts differently walk through the same table, each at its own pace.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Stateless, WorthDrafting
from emsjax.engine.state import DecodeState
from emsjax.errors import UserError, reason
from emsjax.host.files import replace_text
from emsjax.host.json_text import to_json
from emsjax.limits import DRAFT_LENGTH, MAX_DRAFT_LENGTH
from emsjax.sampling.choose import Chosen, choose
from emsjax.sampling.rows import NO_TOKEN, Rows

# Size of the table drawn for a given rate; further samples and places repeat it.
SAMPLES, PLACES = 64, 512
# Tokens drafted at every place of that table. A drafter of shorter drafts cuts them, so that all
# drafters walk through the same table.
LONGEST = MAX_DRAFT_LENGTH


class Acceptance(NamedTuple):
    """The drafts and their acceptance at each of P places in the outputs of N samples.

    Attributes:
      drafted: int32[N, P], tokens drafted at the place.
      accepted: int32[N, P], how many of them are right.
      confidence: float32[N, P], the drafter's probability for each of these tokens.
    """

    drafted: np.ndarray | jax.Array
    accepted: np.ndarray | jax.Array
    confidence: np.ndarray | jax.Array


class Forced(NamedTuple):
    """A simulation.

    Attributes:
      acceptance: the table.
      draft_length: the most tokens drafted at once, unless the drafter's name sets it.
    """

    acceptance: Acceptance
    draft_length: int


def forced_acceptance(wanted: str) -> Forced:
    """Makes the table from a rate or from a recorded file.

    Args:
      wanted: a number from 0 to 1, the probability that a draft token is right if those before it
        are, with `LONGEST` tokens drafted at every place; or the name of a file that
        `write_acceptance` wrote.

    Raises:
      UserError: the rate is out of range, or the file cannot be read.
    """
    try:
        rate = float(wanted)
    except ValueError:
        recorded = read_acceptance(Path(wanted))
        return Forced(recorded, int(np.max(recorded.drafted, initial=1)))
    if not 0 <= rate <= 1:
        raise UserError(f"acceptance {wanted} is out of range; give a number from 0 to 1")
    right = np.random.default_rng(0).random((SAMPLES, PLACES, LONGEST)) < rate
    accepted = np.cumprod(right, axis=2).sum(axis=2)
    shape = accepted.shape
    table = _typed(np.full(shape, LONGEST), accepted, np.full(shape, rate))
    return Forced(table, DRAFT_LENGTH)


def read_acceptance(file: Path) -> Acceptance:
    """Reads a recorded table; samples shorter than the longest are repeated to its length.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if not rows:
            raise ValueError("it is empty")
        columns = [[row[name] for row in rows] for name in Acceptance._fields]
        width = max(map(len, columns[0]))
        table = _typed(*([np.resize(row, width) for row in column] for column in columns))
    except OSError as error:
        raise UserError(
            f"acceptance {str(file)!r} cannot be read ({error.strerror}); give a rate from 0 to 1, "
            "or a file that --record wrote"
        ) from error
    except Exception as error:
        raise UserError(
            f"{file} holds no recorded acceptance ({reason(error)}); record it with --record"
        ) from error
    if not ((table.accepted >= 0) & (table.accepted <= table.drafted)).all():
        raise UserError(f"{file} accepts more tokens than were drafted; record it again")
    return table


def write_acceptance(table: Sequence[Acceptance], file: Path) -> None:
    """Writes a table as JSON, one sample per line.

    Args:
      table: one entry for each sample, with arrays of shape [P].
      file: where to write.

    Raises:
      UserError: the file cannot be written.
    """
    lines = [to_json({k: np.asarray(v).tolist() for k, v in s._asdict().items()}) for s in table]
    try:
        replace_text(file, "".join(line + "\n" for line in lines))
    except OSError as error:
        raise UserError(
            f"acceptance {str(file)!r} cannot be written ({error.strerror}); name another file"
        ) from error


def _typed(drafted: Any, accepted: Any, confidence: Any) -> Acceptance:
    return Acceptance(
        np.asarray(drafted, np.int32),
        np.asarray(accepted, np.int32),
        np.asarray(confidence, np.float32),
    )


def script(sample: jax.Array, place: jax.Array, vocab_size: int) -> jax.Array:
    """The scripted token at a place of a sample: a hash of both.

    Args:
      sample: int32[...], numbers of samples.
      place: int32[...], places counted from the start of the prompt.
      vocab_size: V.

    Returns:
      int32[...].
    """
    x = sample.astype(jnp.uint32) * jnp.uint32(2654435761) + place.astype(jnp.uint32)
    x = (x ^ (x >> 15)) * jnp.uint32(2246822519)
    return ((x ^ (x >> 13)) % jnp.uint32(vocab_size)).astype(jnp.int32)


def scripted_choice(vocab_size: int) -> Callable[[jax.Array, Rows, DecodeState], Chosen]:
    """A replacement of `sampling.choose.choose`: it does the same work, then returns the script."""

    def choose_script(logits: jax.Array, rows: Rows, state: DecodeState) -> Chosen:
        chosen = choose(logits, rows, state)
        tokens = script(_sample(state)[rows.slots], rows.positions + 1, vocab_size)
        # The condition is always true. The compiler cannot know that, or it would drop the logits.
        return chosen._replace(tokens=jnp.where(chosen.tokens >= NO_TOKEN, tokens, chosen.tokens))

    return choose_script


@dataclass(frozen=True)
class Simulated(Stateless):
    """Drafts as the table prescribes; drafting itself costs next to nothing.

    Attributes:
      table: what is drafted and accepted at each place.
      vocab_size: V.
      draft_length: k; longer drafts of the table are cut to it.
    """

    table: Acceptance = field(repr=False)
    vocab_size: int
    draft_length: int

    @property
    def weights(self) -> Acceptance:  # type: ignore[override]
        """The table, which is passed to the device as weights are."""
        return self.table

    def always(self) -> "Simulated":
        """The same drafter with a full draft at every place, to time steps that verify drafts."""
        drafted = np.full(self.table.drafted.shape, self.draft_length, np.int32)
        return replace(self, table=self.table._replace(drafted=drafted))

    def propose(
        self, state: DecodeState, weights: Acceptance, worth: WorthDrafting
    ) -> tuple[Draft, tuple[()]]:
        """Drafts as many right tokens as the table accepts at the place, then wrong ones."""
        del worth
        samples, places = weights.drafted.shape
        sample, place = _sample(state), jnp.maximum(state.lens - state.prompt_lens, 0)
        drafted, accepted, confidence = (x[sample % samples, place % places] for x in weights)
        steps = jnp.arange(self.draft_length, dtype=jnp.int32)[None]
        right = script(sample[:, None], state.lens[:, None] + steps, self.vocab_size)
        wrong = (right + 1) % self.vocab_size
        tokens = jnp.where(steps < accepted[:, None], right, wrong)
        lens = jnp.where(state.live, jnp.minimum(drafted, self.draft_length), 0)
        return Draft(tokens, lens, jnp.broadcast_to(confidence[:, None], tokens.shape)), ()


def _sample(state: DecodeState) -> jax.Array:
    """The number of the sample in each slot, int32[B], which is its prompt's first token."""
    return state.tokens[:, 0]
