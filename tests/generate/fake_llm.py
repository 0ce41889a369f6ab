"""A fake `emsjax.llm`: each byte is a token, and the answer is the prompt backwards.

Results come in a different order from the requests, as they do from a batch of slots. Run as a
program, it is the command line on this fake: `python fake_llm.py [options]`. The replicas that it
starts have the fake, too.
"""

import os
import random
import signal
import sys
import types
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest.mock import MagicMock

from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.trace import Trace, TraceStep
from emsjax.errors import UserError
from emsjax.requests.outputs import CompletionOutput, Piece, RequestOutput

VOCABULARY = 256
_END = object()
# After reading this character the fake fails, as a model does whose logits are not numbers.
UNREADABLE = "?"


@dataclass(frozen=True)
class Request:
    """The result of `LLM.request`."""

    request_id: str
    prompt: str | None
    token_ids: tuple[int, ...]
    params: object


class LLM:
    """The interface of `LLM` without an engine.

    Attributes:
      name: the model's name.
      tokenizer: an object with a chat template or without one.
      loads: the constructor arguments of every instance, latest last.
      pulled: the most requests ever taken and not yet answered, over all runs.
      before_result: called with the number of results returned so far.
      before_piece: called with the position of the next letters.
    """

    name = "fake"
    tokenizer = types.SimpleNamespace(chat_template=None)
    loads: ClassVar[list[dict]] = []
    pulled = 0
    before_result = staticmethod(lambda _number: None)
    before_piece = staticmethod(lambda _place: None)

    def __init__(self, model=None, *, max_batch_size=8, max_model_len=64, **options):
        arguments = {"model": model, "max_batch_size": max_batch_size, **options}
        LLM.loads.append(arguments | {"max_model_len": max_model_len})
        if model == "missing":
            raise UserError("the model 'missing' is not there; give --model a directory.")
        self._slots = self.max_batch_size = max_batch_size
        self._longest = max_model_len
        self._traced = options.get("trace", False)

    def request(self, prompt, params, request_id):
        """Tokenises and checks a prompt."""
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            prompt = "".join(f"<{message['role']}>{message['content']}" for message in prompt)
        ids = tuple(prompt.encode()) if isinstance(prompt, str) else tuple(prompt)
        if not ids:
            raise UserError("the prompt is empty; give it at least one token.")
        if len(ids) > self._longest:
            raise UserError(f"the prompt has {len(ids)} tokens, the model {self._longest}.")
        wrong = [i for i in ids if not 0 <= i < VOCABULARY]
        if wrong:
            raise UserError(f"token id {wrong[0]} is outside the vocabulary of {VOCABULARY}.")
        text = prompt if isinstance(prompt, str) else None
        return Request(request_id, text, ids, params)

    def run(self, requests, *, on_progress=None):
        """Answers in random order, holding at most one request per slot."""
        shuffle, waiting, slots, given = random.Random(0), iter(requests), [], 0
        while True:
            request = None
            while len(slots) < self._slots and (request := next(waiting, _END)) not in (None, _END):
                slots.append(request)
            LLM.pulled = max(LLM.pulled, len(slots))
            if not slots and request is _END:
                return
            if not slots:
                continue  # no request has arrived; `live_lines` has already waited a moment
            output = _answer(slots.pop(shuffle.randrange(len(slots))), self._traced)
            LLM.before_result(given)
            given += 1
            if on_progress:
                on_progress(output.metrics.emitted_tokens)
            yield output

    def run_streaming(self, requests, *, on_progress=None):
        """Answers letter by letter, all prompts in parallel."""
        outputs = list(self.run(requests, on_progress=on_progress))
        longest = max(len(c.text) for o in outputs for c in o.outputs)
        for place in range(longest + 1):
            LLM.before_piece(place)
            for output in outputs:
                for completion in output.outputs:
                    yield from _piece(output, completion, place)


def _piece(output, completion, place):
    """The letter at this position, or after the last one the empty piece that ends the text."""
    text, index = completion.text, completion.index
    if place < len(text):
        yield Piece(output.request_id, index, text[place], (place,))
    elif place == len(text):
        last = output if index == len(output.outputs) - 1 else None
        yield Piece(output.request_id, index, "", (), completion.finish_reason, last)


def _answer(request, traced):
    ids = request.token_ids[::-1][: request.params.max_tokens]
    full = len(ids) == request.params.max_tokens
    text, reason = bytes(ids).decode(errors="replace"), "length" if full else "stop"
    error = None
    if UNREADABLE in text:
        text, reason = text[: text.index(UNREADABLE)], "error"
        error = "the model gave logits that are not numbers"
        ids = tuple(text.encode())
    trace = _trace(ids) if traced else None
    completions = [
        CompletionOutput(n, text, ids, reason, trace=trace, error=error)
        for n in range(request.params.n)
    ]
    metrics = RequestMetrics(
        target_steps=len(ids),
        drafted_tokens=3,
        accepted_tokens=1,
        emitted_tokens=len(ids),
        drafted_by_position=(2, 1),
        accepted_by_position=(1, 0),
        time_to_first_token=0.5,
    )
    return RequestOutput(
        request.request_id, request.prompt, request.token_ids, completions, metrics
    )


def _trace(ids):
    """A trace with one step per token."""
    steps = tuple(TraceStep((), 0, 1) for _ in ids)
    pieces = tuple(bytes([token]).decode(errors="replace") for token in ids)
    return Trace(steps, 0, False, 0, 0, 0.0, 0.5, 1.0, 0.0, pieces)


def install(modules=sys.modules):
    """Makes `import emsjax.llm` find this module."""
    module = types.ModuleType("emsjax.llm")
    module.LLM = LLM
    modules["emsjax.llm"] = module


def _die_at(result: int, once: Path | None) -> None:
    """Ends this process before this result; if a file is given, only the first to create it."""
    errors = {"RuntimeError": RuntimeError("no"), "UserError": UserError("no")}
    how = errors.get(os.environ.get("DIE_HOW", ""))

    def before(number):
        with suppress(FileExistsError):
            if number == result:
                if once is not None:
                    once.touch(exist_ok=False)
                if how is not None:
                    raise how
                if os.environ.get("DIE_HOW") == "device":
                    signal.pause()
                if os.environ.get("DIE_HOW") == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGKILL)

    LLM.before_result = staticmethod(before)


def _pause_at(result: int) -> None:
    """Waits for a signal before this result, so that a test can send it at a known point."""

    def before(number):
        if number == result:
            print("waiting", file=sys.stderr, flush=True)
            signal.pause()

    LLM.before_result = staticmethod(before)


def _replica() -> int:
    """Runs a replica without jax, whose import takes longer than all else here."""
    jax = MagicMock()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    jax.default_backend.return_value = "cpu" if visible == os.environ.get("ABSENT") else "gpu"
    sys.modules.update({"jax": jax, "jax.monitoring": jax.monitoring})
    from emsjax.generate.replicas.child import main

    if "DIE_AT" in os.environ:
        once = os.environ.get("DIE_ONCE")
        _die_at(int(os.environ["DIE_AT"]), Path(once) if once else None)
    elif "PAUSE_AT" in os.environ:
        _pause_at(int(os.environ["PAUSE_AT"]))
    return main()


if __name__ == "__main__":
    from emsjax.generate.__main__ import main
    from emsjax.generate.replicas import process

    install()
    if sys.argv[1:] == ["replica"]:
        sys.exit(_replica())
    process.COMMAND = (sys.executable, __file__, "replica")
    # Background jobs of a shell ignore SIGINT, and pass that on to their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PAUSE_AT" in os.environ:
        _pause_at(int(os.environ["PAUSE_AT"]))
    sys.exit(main())
