"""One method at one batch size, in a process of its own.

So that its peak memory is its own, while the repetitions of all methods still take turns: only
one worker computes at a time, the others wait on their pipe.
"""

import multiprocessing
import os
import time
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

from benchmarks.common import machine_cpu_seconds, peak_rss

Tokens = list[int]

TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Case:
    """What a worker runs.

    Attributes:
      method: "transformers", or the name of an emsjax drafter; with "@" and a number behind it
        that many tokens are drafted and verified every time, without a planner.
      batch_size: B.
      model: for emsjax: as for `LLM`.
      hf_directory: for transformers: the same weights.
      dtype: of weights and computation.
      ignore_eos: whether to go on past the end of text.
      exact: emsjax's `exact`.
      max_model_len: emsjax's; None for its default.
      compile_cache: an empty directory, so that compiling is measured.
      torch_threads: for transformers.
    """

    method: str
    batch_size: int
    model: str | None
    hf_directory: str
    dtype: str
    ignore_eos: bool
    exact: bool
    max_model_len: int | None
    compile_cache: str
    torch_threads: int


@dataclass(frozen=True)
class Run:
    """One timed pass over all prompts.

    Attributes:
      seconds: from token ids in to token ids out.
      tokens: generated, of each prompt.
      target_steps: steps that emitted tokens, summed over prompts.
      drafted: tokens drafted, by position.
      accepted: tokens accepted, by position.
      others_cores: processors that other processes kept busy meanwhile, on average; None where
        that cannot be told.
    """

    seconds: float
    tokens: list[Tokens]
    target_steps: int
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    others_cores: float | None = None


class Method(Protocol):
    """Something that generates."""

    device: str

    def generate(self, prompts: list[Tokens], max_tokens: int) -> Run:
        """Generates greedily for all prompts."""


class Worker:
    """The parent's end of a worker process."""

    def __init__(self, case: Case):
        """Starts the process and waits until its model is loaded."""
        self.case = case
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, case), daemon=True)
        self._process.start()
        theirs.close()
        self.ready: dict[str, Any] = self._receive()

    def generate(self, prompts: list[Tokens], max_tokens: int) -> Run:
        """One pass over all prompts."""
        self._pipe.send((prompts, max_tokens))
        return Run(**self._receive())

    def close(self) -> int:
        """Ends the process; gives its peak resident memory in bytes."""
        self._pipe.send(None)
        peak = self._receive()["peak_rss"]
        self._process.join()
        return int(peak)

    def _receive(self) -> dict[str, Any]:
        try:
            return dict(self._pipe.recv())
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            raise SystemExit(f"the worker of {self.case.method} ended, status {status}") from None


def _serve(pipe: Connection, case: Case) -> None:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = case.compile_cache
    started = time.perf_counter()
    kind = _Transformers if case.method == TRANSFORMERS else _Emsjax
    method: Method = kind(case)
    seconds = time.perf_counter() - started
    pipe.send({"load_seconds": seconds, "loaded_rss": peak_rss(), "device": method.device})
    while (work := pipe.recv()) is not None:
        pipe.send(asdict(_observed(method, *work)))
    pipe.send({"peak_rss": peak_rss()})


def _observed(method: Method, prompts: list[Tokens], max_tokens: int) -> Run:
    """The run, with what other processes took of the machine meanwhile."""
    own, all_cpu, started = time.process_time(), machine_cpu_seconds(), time.perf_counter()
    run = method.generate(prompts, max_tokens)
    if all_cpu is None:
        return run
    own, all_cpu = time.process_time() - own, machine_cpu_seconds() - all_cpu
    return replace(run, others_cores=max(all_cpu - own, 0.0) / (time.perf_counter() - started))


class _Transformers:
    """`generate` of `transformers`: left padding, attention mask, growing key-value cache."""

    def __init__(self, case: Case):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(case.torch_threads)
        self._batch_size = case.batch_size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(
            case.hf_directory, dtype=getattr(torch, case.dtype)
        )
        self._eos = () if case.ignore_eos else _as_tuple(model.config.eos_token_id)
        if case.ignore_eos:
            model.config.eos_token_id = model.generation_config.eos_token_id = None
        self._model = model.to(self.device).eval()

    def generate(self, prompts: list[Tokens], max_tokens: int) -> Run:
        """Batch after batch, in the order given."""
        started = time.perf_counter()
        tokens: list[Tokens] = []
        for first in range(0, len(prompts), self._batch_size):
            tokens += self._batch(prompts[first : first + self._batch_size], max_tokens)
        seconds = time.perf_counter() - started
        return Run(seconds, tokens, target_steps=sum(map(len, tokens)))

    def _batch(self, prompts: list[Tokens], max_tokens: int) -> list[Tokens]:
        import torch

        width = max(map(len, prompts))
        rows = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor(rows, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=0,
            )
        return [self._cut(row) for row in out[:, width:].tolist()]

    def _cut(self, row: Tokens) -> Tokens:
        """Without the padding behind the end of text."""
        ends = [position for position, token in enumerate(row) if token in self._eos]
        return row[: ends[0] + 1] if ends else row


class _Emsjax:
    """`LLM.generate`: all prompts through the slots."""

    def __init__(self, case: Case):
        import jax

        from emsjax import LLM

        self._ignore_eos = case.ignore_eos
        self.device = jax.devices()[0].device_kind
        drafter, _, fixed = case.method.partition("@")
        self._llm = LLM(
            case.model,
            drafter=drafter,
            draft_length=int(fixed) if fixed else None,
            planner=not fixed,
            dtype=case.dtype,
            max_batch_size=case.batch_size,
            max_model_len=case.max_model_len,
            exact=case.exact,
        )

    def generate(self, prompts: list[Tokens], max_tokens: int) -> Run:
        """All at once; the engine refills its slots."""
        from emsjax import SamplingParams
        from emsjax.metrics import RunTotals

        params = SamplingParams(max_tokens=max_tokens, ignore_eos=self._ignore_eos)
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, params)
        seconds = time.perf_counter() - started
        totals = RunTotals()
        for output in outputs:
            totals.add(output.metrics)
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        drafted, accepted = totals.drafted_by_position, totals.accepted_by_position
        return Run(seconds, tokens, totals.target_steps, drafted, accepted)


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)
