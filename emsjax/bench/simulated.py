"""Forced acceptance: the true computation of a model whose text and drafts are made up.

A model with random weights writes nothing that a drafter could guess. So the text is a script,
known beforehand, and at each place of it a table says how many tokens are drafted and how many of
those are right. The target computes all that it would, logits included, and then the script has the
word. Places are those of the script, not steps: methods that cut drafts differently walk through
the same table, each at its own pace.
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
from emsjax.errors import UserError
from emsjax.host.files import replace_text
from emsjax.limits import DRAFT_LENGTH, MAX_DRAFT_LENGTH
from emsjax.sampling.choose import Chosen, choose
from emsjax.sampling.rows import Rows

# Samples and places for which a given rate is drawn; they repeat beyond.
SAMPLES, PLACES = 64, 512
# Drafted at every place where a rate is given; drafters of shorter drafts cut them and walk through
# the same table.
LONGEST = MAX_DRAFT_LENGTH


class Acceptance(NamedTuple):
    """What is drafted and accepted at each place of N samples' outputs, P places each.

    Attributes:
      drafted: int32[N, P], tokens drafted there.
      accepted: int32[N, P], how many of them are right.
      confidence: float32[N, P], how likely the drafter thinks each of them is.
    """

    drafted: np.ndarray | jax.Array
    accepted: np.ndarray | jax.Array
    confidence: np.ndarray | jax.Array


class Forced(NamedTuple):
    """What is simulated.

    Attributes:
      acceptance: the table.
      draft_length: tokens drafted at once by a drafter that is not told how many.
    """

    acceptance: Acceptance
    draft_length: int


def forced_acceptance(wanted: str) -> Forced:
    """From a rate, or from a file that `recording` wrote.

    Args:
      wanted: a number from 0 to 1, the chance that a draft token is right if those before it are,
        of which `LONGEST` are then drafted at every place; or a file's name.

    Raises:
      UserError: the rate is out of range, or the file cannot be read.
    """
    try:
        rate = float(wanted)
    except ValueError:
        recorded = read_acceptance(Path(wanted))
        return Forced(recorded, int(np.max(recorded.drafted, initial=1)))
    if not 0 <= rate <= 1:
        raise UserError(f"an acceptance of {wanted} is no share of tokens: give a number 0 to 1")
    right = np.random.default_rng(0).random((SAMPLES, PLACES, LONGEST)) < rate
    accepted = np.cumprod(right, axis=2).sum(axis=2)
    shape = accepted.shape
    table = _typed(np.full(shape, LONGEST), accepted, np.full(shape, rate))
    return Forced(table, DRAFT_LENGTH)


def read_acceptance(file: Path) -> Acceptance:
    """A recorded table; samples shorter than the longest repeat.

    Raises:
      UserError: the file is not there or damaged.
    """
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if not rows:
            raise ValueError("it is empty")
        columns = [[row[name] for row in rows] for name in Acceptance._fields]
        width = max(map(len, columns[0]))
        table = _typed(*([np.resize(row, width) for row in column] for column in columns))
    except OSError as error:
        raise UserError(f"acceptance {str(file)!r} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no recorded acceptance ({error!r}): record it") from error
    if not ((table.accepted >= 0) & (table.accepted <= table.drafted)).all():
        raise UserError(f"{file} accepts more tokens than were drafted: record it again")
    return table


def write_acceptance(table: Sequence[Acceptance], file: Path) -> None:
    """One sample a line; each field's arrays are [P].

    Raises:
      UserError: the file cannot be written.
    """
    lines = [json.dumps({k: np.asarray(v).tolist() for k, v in s._asdict().items()}) for s in table]
    try:
        replace_text(file, "".join(line + "\n" for line in lines))
    except OSError as error:
        raise UserError(f"acceptance {str(file)!r} cannot be written: {error.strerror}") from error


def _typed(drafted: Any, accepted: Any, confidence: Any) -> Acceptance:
    return Acceptance(
        np.asarray(drafted, np.int32),
        np.asarray(accepted, np.int32),
        np.asarray(confidence, np.float32),
    )


def script(sample: jax.Array, place: jax.Array, vocab_size: int) -> jax.Array:
    """The token int32[...] that sample int32[...] has at an absolute place int32[...]."""
    x = sample.astype(jnp.uint32) * jnp.uint32(2654435761) + place.astype(jnp.uint32)
    x = (x ^ (x >> 15)) * jnp.uint32(2246822519)
    return ((x ^ (x >> 13)) % jnp.uint32(vocab_size)).astype(jnp.int32)


def scripted_choice(vocab_size: int) -> Callable[[jax.Array, Rows, DecodeState], Chosen]:
    """As `sampling.choose.choose`, whose work it does and whose word it ignores."""

    def choose_script(logits: jax.Array, rows: Rows, state: DecodeState) -> Chosen:
        chosen = choose(logits, rows, state)
        tokens = script(_sample(state)[rows.slots], rows.positions + 1, vocab_size)
        # Always true, which the compiler cannot know: else it would leave the logits out.
        return chosen._replace(tokens=jnp.where(chosen.tokens >= 0, tokens, chosen.tokens))

    return choose_script


@dataclass(frozen=True)
class Simulated(Stateless):
    """Drafts as the table says; drafting itself costs nothing.

    Attributes:
      table: see `Acceptance`.
      vocab_size: V.
      draft_length: k; longer drafts of the table are cut.
    """

    table: Acceptance = field(repr=False)
    vocab_size: int
    draft_length: int

    @property
    def weights(self) -> Acceptance:  # type: ignore[override]
        """The table, on the device."""
        return self.table

    def always(self) -> "Simulated":
        """The same with drafts everywhere, to time steps that verify them."""
        drafted = np.full(self.table.drafted.shape, self.draft_length, np.int32)
        return replace(self, table=self.table._replace(drafted=drafted))

    def propose(
        self, state: DecodeState, weights: Acceptance, worth: WorthDrafting
    ) -> tuple[Draft, tuple[()]]:
        """Right tokens as far as the table has them, then wrong ones."""
        del worth
        samples, places = weights.drafted.shape
        sample, place = _sample(state), jnp.maximum(state.lens - state.prompt_lens, 0)
        drafted, accepted, sure = (x[sample % samples, place % places] for x in weights)
        steps = jnp.arange(self.draft_length, dtype=jnp.int32)[None]
        right = script(sample[:, None], state.lens[:, None] + steps, self.vocab_size)
        wrong = (right + 1) % self.vocab_size
        tokens = jnp.where(steps < accepted[:, None], right, wrong)
        lens = jnp.where(state.live, jnp.minimum(drafted, self.draft_length), 0)
        return Draft(tokens, lens, jnp.broadcast_to(sure[:, None], tokens.shape)), ()


def _sample(state: DecodeState) -> jax.Array:
    """The number int32[B] of the sample in each slot: its prompt begins with it."""
    return state.tokens[:, 0]
