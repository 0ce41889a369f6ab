"""How one output came about, step by step: where each token came from, and what was guessed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple

Source = Literal["plain", "drafted", "bonus"]


class TraceStep(NamedTuple):
    """One target step of an output.

    Attributes:
      drafted: the draft tokens that the target verified, in order; none for plain decoding.
      accepted: how many of them, from the first on, the target chose itself.
      emitted: how many tokens of the output came with this step: the accepted ones and the target's
        own behind them, fewer where the output ends before.
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
        """The draft tokens in whose place the target chose its own; the first was wrong.

        None where the output ended before that: what was drafted behind the end is dropped, neither
        accepted nor rejected.
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
    """How one output came about.

    Its sums are the metrics of the output: `steps` that emitted something are `target_steps`, their
    draft tokens `drafted_tokens`, and so on for `accepted` and `emitted`. Where a stop string ended
    the output, the last `steps` may be ones that were made before that was noticed: they count as
    drafted and accepted, as they do in the metrics, and emitted nothing.

    Attributes:
      steps: in order.
      prefill_steps: steps before them that only read the prompt.
      prompt_shared: whether the prompt was read for another output of the request already.
      slot: where it was decoded, counted from 0.
      first_step: steps that the batch had made, in this run, when it took the slot. It took part
        in each of the batch's steps from then on, up to its end.
      started: when it took the slot, in seconds since the run began.
      first_token: when its first token was seen, likewise.
      finished: when its end was seen, likewise; where no request waited, up to 32 steps late.
      run_began: when the engine's run began, by `time.perf_counter`; the same for outputs that were
        decoded together.
      pieces: the text that each token of the output adds; "" for one that only continues or begins
        a character, or has no text. None where the model came without a tokenizer.
      token_texts: what the tokens of the output and of its drafts stand for by themselves.
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

        "drafted": a draft token that the target accepted. "bonus": the target's own, behind
        accepted ones in the same step. "plain": the target's own, from a step that accepted none,
        which is what plain decoding makes. So plain and bonus are one for each target step, but for
        steps that the output ended in before.
        """
        return tuple(chain.from_iterable(step.sources for step in self.steps))
