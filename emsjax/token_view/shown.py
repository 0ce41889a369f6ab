"""What the page shows of each output: its tokens and steps as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from emsjax.engine.trace import Source, Trace
from emsjax.requests.outputs import CompletionOutput, RequestOutput

# Decoders put this in the place of bytes that are no whole character.
HALF = "\ufffd"
# Control characters as the pictures that Unicode has for them; line breaks and tabs stay.
_PICTURES = {c: 0x2400 + c for c in range(32) if c not in (9, 10)} | {127: 0x2421}


class ShownToken(NamedTuple):
    """One token of an output.

    Attributes:
      id: in the vocabulary.
      source: where it came from.
      text: its part of the output's text; the id where there is no tokenizer.
      cut: text that is not in the output's, because a stop string or token ended that before.
      name: what stands in the place of a token without text: that of a special token, "" for a
        part of a character that a later token completes.
    """

    id: int
    source: Source
    text: str
    cut: str
    name: str


class ShownStep(NamedTuple):
    """One target step.

    Attributes:
      tokens: of the output.
      drafted: the texts of the draft tokens.
      accepted: how many of them were.
      own: whether the target's own token is in the output.
    """

    tokens: list[ShownToken]
    drafted: list[str]
    accepted: int
    own: bool

    @property
    def rejected(self) -> int:
        """How many draft tokens the target's own took the place of."""
        return len(self.drafted) - self.accepted if self.own else 0


@dataclass(frozen=True)
class ShownOutput:
    """One output.

    Attributes:
      number: its place on the page, from 0.
      name: of its request, and which of several outputs it is.
      label: the same, shorter.
      prompt: the request's; None where another output of it comes before.
      steps: those that emitted something.
      end: how it ended, in words.
      trace: as the engine gave it.
    """

    number: int
    name: str
    label: str
    prompt: str | None
    steps: list[ShownStep]
    end: str
    trace: Trace

    @property
    def emitted(self) -> int:
        """Tokens of the output."""
        return sum(len(step.tokens) for step in self.steps)


def shown_outputs(output: RequestOutput, name: str, first: int) -> list[ShownOutput]:
    """The outputs of a request, which all have a trace, numbered from `first` on."""
    several = len(output.outputs) > 1
    return [
        ShownOutput(
            number=first + place,
            name=f"{name}, output {place + 1}" if several else name,
            label=f"{name}.{place + 1}" if several else name,
            prompt=None if place else _prompt(output),
            steps=list(_steps(completion, completion.trace)),
            end=_end(completion),
            trace=completion.trace,
        )
        for place, completion in enumerate(output.outputs)
        if completion.trace is not None
    ]


def _prompt(output: RequestOutput) -> str:
    if output.prompt is not None:
        return visible(output.prompt)
    return " ".join(map(str, output.prompt_token_ids))


def _end(completion: CompletionOutput) -> str:
    """Why the output ended there."""
    if completion.finish_reason == "length":
        return "ended at its limit"
    if isinstance(completion.stop_reason, str):
        return f"ended by the stop string {completion.stop_reason!r}"
    if completion.stop_reason is not None:
        return f"ended by the stop token {completion.stop_reason}"
    return "ended at the end of text"


def _steps(completion: CompletionOutput, trace: Trace) -> Iterator[ShownStep]:
    tokens = _tokens(completion, trace)
    for step in trace.steps:
        if step.emitted:
            drafted = [_draft_text(token, trace) for token in step.drafted]
            yield ShownStep(list(islice(tokens, step.emitted)), drafted, step.accepted, step.own)


def _tokens(completion: CompletionOutput, trace: Trace) -> Iterator[ShownToken]:
    if trace.pieces is None or completion.text is None:
        for token, source in zip(completion.token_ids, trace.sources, strict=True):
            yield ShownToken(token, source, f"{token} ", "", "")
        return
    room = len(completion.text)
    for token, source, piece in zip(completion.token_ids, trace.sources, trace.pieces, strict=True):
        text, cut = piece[:room], piece[room:]
        room -= len(text)
        name = "" if piece else _special(token, trace)
        yield ShownToken(token, source, visible(text), visible(cut), name)


def _special(token: int, trace: Trace) -> str:
    text = trace.token_texts.get(token, "")
    return "" if HALF in text else visible(text)


def _draft_text(token: int, trace: Trace) -> str:
    """A draft token by itself; its id where that is no text."""
    text = trace.token_texts.get(token, "")
    return visible(text) if text and HALF not in text else f"#{token}"


def visible(text: str) -> str:
    """Text with control characters as pictures."""
    return text.translate(_PICTURES)
