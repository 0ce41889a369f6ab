"""Drafts with the target itself, which attends to a part of its own cache.

Where the texts are long, a step reads more K/V than weights. A row that sees only the first tokens
of a text, its attention sinks, and a window of the latest ones (StreamingLLM, arXiv 2309.17453)
costs less, and mostly leads to the same token (MagicDec, arXiv 2408.11049). The draft's rows write
their K/V past the known text, where the target writes again when it verifies the draft, before it
reads. So drafting needs no cache, no training, and nothing of the prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.drafters.token_by_token import Drafting
from emsjax.engine.acceptance import expect
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import COSTLY_SOURCE, Memoryless, WorthDrafting
from emsjax.engine.holes import after_holes
from emsjax.engine.ladder import row_capacity
from emsjax.engine.model import Model, View
from emsjax.engine.packing import Guesses, pack
from emsjax.engine.sizes import Exchange
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes
from emsjax.sampling.guess import guess
from emsjax.sampling.rows import rows_after
from emsjax.sampling.vocabulary import WHOLE, Vocabulary

# StreamingLLM keeps four sink tokens.
DEFAULT_VIEW = View(sink_tokens=4, window=512)
# The least probability with which a guess is taken to be right in a text's first steps. Experience
# begins at less (`acceptance.UNKNOWN`), with which drafts this costly would never begin to pay off.
# It is the mean of `benchmarks/results/window_agreement.json` for this window.
LIKELY, FIRST_STEPS = 0.85, 16


@dataclass(frozen=True)
class SelfWindow(Memoryless):
    """Drafts for all slots at once, token by token; remembers nothing between steps.

    Attributes:
      weights: the target's parameters. They are the engine's own, not copies.
      merge: builds the target from its parameters.
      read_bytes: bytes of weights that a pass reads, all that a step reads.
      view: what a row sees of the text before it.
      draft_length: k.
      narrowest: the fewest rows that are worth a separate shape, apart from a single row.
      vocabulary: which tokens the target's logits are of.
      exchanges: what devices that share the target exchange in a pass, all of a step.
    """

    weights: Any = field(repr=False)
    merge: Callable[[Any], Model] = field(repr=False)
    read_bytes: int
    view: View = DEFAULT_VIEW
    draft_length: int = 7
    narrowest: int = 8
    vocabulary: Vocabulary = WHOLE
    exchanges: tuple[Exchange, ...] = ()
    hidden_size: int = field(default=0, init=False)
    hidden_layers: tuple[int, ...] = field(default=(), init=False)

    def passes(self, num_slots: int) -> Passes:
        """Returns that a pass reads the K/V that its rows see, and what devices exchange."""
        del num_slots
        seen = self.view.sink_tokens + self.view.window
        return Passes(self.draft_length, tokens=seen, exchanges=self.exchanges)

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Drafts for each slot that decodes."""
        ready = state.live & (state.lens - state.kv_lens == 1)
        likely = expect(state.experience, COSTLY_SOURCE, self.draft_length)
        begins = state.stats.target_steps[:, None] < FIRST_STEPS
        likely = jnp.where(begins, jnp.maximum(likely, LIKELY), likely)
        length = worth(jnp.where(ready[:, None], jnp.cumprod(likely, axis=1), 0.0))
        # Rows have places in the cache only as far as the text may grow.
        room = jnp.maximum(state.max_lens - state.lens - 1, 0)
        lens = jnp.where(ready, jnp.minimum(length, room), 0)
        target = self.merge(weights)
        drafted = jax.lax.while_loop(
            lambda now: (now.done < lens).any(),
            lambda now: self._guess(target, state, lens, now),
            Drafting.begin(ready.shape[0], self.draft_length, state.cache),
        )
        source = jnp.full_like(drafted.guesses, COSTLY_SOURCE)
        draft = Draft(drafted.guesses, lens, drafted.confidence, source, cache=drafted.cache)
        return draft, ()

    def _guess(self, target: Model, state: DecodeState, lens: jax.Array, now: Drafting) -> Drafting:
        """Adds one guess per slot."""
        capacity = row_capacity(lens.shape[0], self.narrowest)
        q_lens = (now.done < lens).astype(jnp.int32)
        guesses = Guesses(now.guesses, state.lens)
        batch = pack(state.tokens, state.lens - 1 + now.done, q_lens, capacity, guesses)
        batch = batch if state.holes is None else after_holes(batch, state.holes)
        done = target.run(batch, now.cache, max_q_len=1, view=self.view)
        newest = done.hidden[jnp.maximum(batch.cu_q_lens[1:] - 1, 0)]
        rows = rows_after(state.tokens, state.lens, now.guesses, now.done)
        found = guess(target.logits(newest), rows, state, vocabulary=self.vocabulary)
        return now._replace(cache=done.cache).add(found)
