"""The tokens and steps of each output as text for the page."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from emsjax.engine.trace import Source, Trace
from emsjax.requests.outputs import CompletionOutput, RequestOutput

# What decoders write for bytes that are not a whole character.
HALF = "\ufffd"
# Control characters to their Unicode pictures, except for line breaks and tabs.
_PICTURES = {c: 0x2400 + c for c in range(32) if c not in (9, 10)} | {127: 0x2421}


class ShownToken(NamedTuple):
    """One token of an output.

    Attributes:
      id: its id in the vocabulary.
      source: its origin.
      text: its part of the output's text; its id if the model has no tokenizer.
      cut: its text after the end of the output's text, which a stop string or token ended.
      name: shown for a token without text: the name of a special token, or "" for a part of a
        character that a later token completes.
    """

    id: int
    source: Source
    text: str
    cut: str
    name: str


class ShownStep(NamedTuple):
    """One target step.

    Attributes:
      tokens: the tokens that it emitted.
      drafted: the texts of the draft tokens.
      accepted: the number of accepted draft tokens.
      own: whether the target's own token is in the output.
    """

    tokens: list[ShownToken]
    drafted: list[str]
    accepted: int
    own: bool

    @property
    def rejected(self) -> int:
        """The number of rejected draft tokens; 0 if the output ended before the target's own."""
        return len(self.drafted) - self.accepted if self.own else 0


@dataclass(frozen=True)
class ShownOutput:
    """One output.

    Attributes:
      number: its position on the page, from 0.
      name: the name of its request, with the output's number if there are several.
      label: a shorter form of the name.
      prompt: the request's prompt; None except for the request's first output.
      steps: the steps that emitted tokens.
      end: how it ended, in words.
      trace: its trace.
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
        """The number of tokens in the output."""
        return sum(len(step.tokens) for step in self.steps)


def shown_outputs(output: RequestOutput, name: str, first: int) -> list[ShownOutput]:
    """Prepares the outputs of a request for the page, numbered from `first` on."""
    several = len(output.outputs) > 1
    return [
        ShownOutput(
            number=first + position,
            name=f"{name}, output {position + 1}" if several else name,
            label=f"{name}.{position + 1}" if several else name,
            prompt=None if position else _prompt(output),
            steps=shown_steps(completion),
            end=_end(completion),
            trace=completion.trace,
        )
        for position, completion in enumerate(output.outputs)
        if completion.trace is not None
    ]


def _prompt(output: RequestOutput) -> str:
    if output.prompt is not None:
        return visible(output.prompt)
    return " ".join(map(str, output.prompt_token_ids))


def _end(completion: CompletionOutput) -> str:
    """Why the output ended."""
    if completion.error is not None:
        return f"ended by an error: {completion.error}"
    if completion.finish_reason == "length":
        return "ended at the length limit"
    if isinstance(completion.stop_reason, str):
        return f"ended by the stop string {completion.stop_reason!r}"
    if completion.stop_reason is not None:
        return f"ended by the stop token {completion.stop_reason}"
    return "ended at the end of text"


def shown_steps(completion: CompletionOutput) -> list[ShownStep]:
    """Returns the steps that emitted tokens; none without a trace."""
    trace = completion.trace
    return [] if trace is None else list(_steps(completion, trace))


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
    """The text of a draft token; its id if it has none or is part of a character."""
    text = trace.token_texts.get(token, "")
    return visible(text) if text and HALF not in text else f"#{token}"


def visible(text: str) -> str:
    """Replaces control characters by their pictures."""
    return text.translate(_PICTURES)
