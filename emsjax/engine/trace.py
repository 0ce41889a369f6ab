"""The history of one output, step by step: where each token came from, and what was drafted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple

Source = Literal["plain", "drafted", "bonus"]


class TraceStep(NamedTuple):
    """One target step of an output.

    Attributes:
      drafted: the draft tokens that the target verified, in order; empty for plain decoding.
      accepted: how many of them the target accepted: a prefix of the draft.
      emitted: how many tokens of the output this step emitted. These are the accepted tokens and
        the target's own token after them, or fewer if the output ends earlier.
    """

    drafted: tuple[int, ...]
    accepted: int
    emitted: int

    @property
    def own(self) -> bool:
        """Whether the target's own token is in the output."""
        return self.emitted > self.accepted

    @property
    def rejected(self) -> tuple[int, ...]:
        """The draft tokens from the first wrong one on; the target's own token took its place.

        Empty if the target accepted the whole draft, and if the output ended before the target's
        own token. In that case the rest of the draft is neither accepted nor rejected.
        """
        return self.drafted[self.accepted :] if self.own else ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where each emitted token came from, see `Trace.sources`."""
        guessed: list[Source] = ["drafted"] * min(self.accepted, self.emitted)
        own: list[Source] = ["bonus" if guessed else "plain"] if self.own else []
        return (*guessed, *own)


@dataclass(frozen=True)
class Trace:
    """The history of one output.

    Its sums equal the output's metrics: the number of `steps` that emitted something is
    `target_steps`, the sum of their draft tokens is `drafted_tokens`, and so on for `accepted` and
    `emitted`. If a stop string ended the output, the last `steps` may have run before the host
    noticed. These steps emitted nothing, but their draft tokens count as drafted and accepted, as
    they do in the metrics.

    Attributes:
      steps: the target steps, in order.
      prefill_steps: number of earlier steps that only read the prompt.
      prompt_shared: whether the prompt had already been read for another output of the request.
      slot: the slot that decoded the output, counted from 0.
      first_step: number of steps that the batch had run when the output took its slot, counted from
        the start of the run. The output took part in each of the batch's steps from then on, until
        its end.
      started: when the output took the slot, in seconds since the run began.
      first_token: when the host saw the first token, in seconds since the run began.
      finished: when the host saw the end, in seconds since the run began. If no request waited,
        this is up to 32 steps late.
      run_began: when the engine's run began, by `time.perf_counter`; the same for outputs that were
        decoded together.
      pieces: the text that each token of the output adds; "" for a token that only begins or
        continues a character, or has no text. None if the model has no tokenizer.
      token_texts: the text of each token of the output and its drafts, decoded alone.
    """

    steps: tuple[TraceStep, ...]
    prefill_steps: int
    prompt_shared: bool
    slot: int
    first_step: int
    started: float
    first_token: float
    finished: float
    run_began: float
    pieces: tuple[str, ...] | None = None
    token_texts: Mapping[int, str] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where each token of the output came from.

        "drafted" is a draft token that the target accepted. "bonus" is the target's own token after
        accepted ones in the same step. "plain" is the target's own token from a step that accepted
        none, as in plain decoding. Every target step emits one plain or bonus token, unless the
        output ends before it.
        """
        return tuple(chain.from_iterable(step.sources for step in self.steps))
