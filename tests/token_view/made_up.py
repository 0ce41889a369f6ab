"""Handmade outputs, with every text that could break a page."""

from dataclasses import replace

from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.trace import Trace, TraceStep
from emsjax.requests.outputs import CompletionOutput, RequestOutput

# The text of each token, by id: texts that break a page unless escaped, a character of two tokens,
# and a special token.
TEXTS = (
    "plain",
    "<script>document.title = 'broken'</script>",
    "</style></script><img src=x onerror=\"document.title = 'broken'\">",
    "&amp;",
    "a 'quoted' \"word\"",
    "line\n\nbreaks\n",
    "   ",
    "\ufffd",  # the first half of a character
    "é",  # the second half, which completes it
    "{{ 7 * 7 }}",
    "\u202eright to left",
    "\x00\x1b",
    "<|end|>",
)
HALF, WHOLE, END = 7, 8, 12
TAGS = (1, 2, 4)


def trace(steps: list[TraceStep], tokens: list[int], **changes) -> Trace:
    """A trace in which half characters and special tokens have no text."""
    pieces = tuple("" if token in (HALF, END) else TEXTS[token] for token in tokens)
    made = Trace(
        steps=tuple(steps),
        prefill_steps=2,
        prompt_shared=False,
        slot=0,
        first_step=0,
        started=0.0,
        first_token=0.5,
        finished=1.5,
        run_began=100.0,
        pieces=pieces,
        token_texts=dict(enumerate(TEXTS)),
    )
    return replace(made, **changes)


def completion(
    steps: list[TraceStep], tokens: list[int], text: str | None = None, **changes
) -> CompletionOutput:
    made = trace(steps, tokens, **changes)
    if made.pieces is not None and text is None:
        text = "".join(made.pieces)
    return CompletionOutput(0, text, tuple(tokens), "length", trace=made)


def metrics(steps: list[TraceStep], longest: int = 3) -> RequestMetrics:
    """The metrics that the engine would count for these steps."""
    places = range(longest)
    drafted = tuple(sum(len(step.drafted) > place for step in steps) for place in places)
    accepted = tuple(sum(step.accepted > place for step in steps) for place in places)
    return RequestMetrics(
        target_steps=sum(step.emitted > 0 for step in steps),
        drafted_tokens=sum(drafted),
        accepted_tokens=sum(accepted),
        emitted_tokens=sum(step.emitted for step in steps),
        drafted_by_position=drafted,
        accepted_by_position=accepted,
        time_to_first_token=0.5,
        prefill_steps=2,
    )


STEPS = [
    TraceStep((), 0, 1),
    TraceStep((1, 4, 3), 1, 2),
    TraceStep((1, 3), 0, 1),
    TraceStep((5, 6), 2, 3),
    TraceStep((WHOLE, 9, 2), 2, 3),
    TraceStep((11, END, 0), 2, 2),
]
TOKENS = [0, 1, 2, 4, 5, 6, HALF, WHOLE, 9, 10, 11, END]
SOURCES = {"plain": 2, "drafted": 7, "bonus": 3}
# Tokens that replaced a rejected draft, with the first rejected draft token.
REJECTED = {2: "a 'quoted' \"word\"", 4: TEXTS[1], 10: TEXTS[2]}


def output(name: str = "1", **changes) -> RequestOutput:
    """A request with nearly all of `TEXTS`."""
    prompt = "</pre><script>document.title = 'broken'</script>"
    made = completion(STEPS, TOKENS, **changes)
    return RequestOutput(name, prompt, (1, 2), [made], metrics(STEPS))


def small(name: str = "1", drafted: tuple[int, ...] = (), **changes) -> RequestOutput:
    """A request with a single token."""
    steps = [TraceStep(drafted, 0, 1)]
    return RequestOutput(name, "p", (1,), [completion(steps, [0], **changes)], metrics(steps))
