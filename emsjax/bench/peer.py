"""`transformers` on the same prompts, if PyTorch is installed."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from emsjax.bench.contenders import Spec
from emsjax.bench.decoding import Run
from emsjax.bench.prompts import Tokens
from emsjax.bench.target import Target
from emsjax.engine.job import Job
from emsjax.errors import foreign
from emsjax.loading.export import export_hugging_face
from emsjax.loading.named import hugging_face_config

PEER = Spec("transformers")


class Peer:
    """`generate` of `transformers`: left padding, attention mask, growing K/V cache."""

    def __init__(self, model: Any, device: str):
        """Wraps a PyTorch model that is on `device`."""
        self._model, self._device = model.eval(), device

    def decode(self, cache: Any, jobs: Sequence[Job], prefill: float = 0.0) -> tuple[Any, Run]:
        """Reads the prompts and writes their texts.

        The time of prefill is that of a separate run of one token, and is subtracted.

        Args:
          cache: returned as it is, so that a peer can be called like a contender.
          jobs: the prompts.
          prefill: ignored.
        """
        del prefill
        started = time.perf_counter()
        self._generate(jobs, 1)
        read = time.perf_counter()
        texts = self._generate(jobs, max(job.max_tokens for job in jobs))
        seconds = time.perf_counter() - read
        steps = max(map(len, texts))
        return cache, Run(seconds - (read - started), texts, steps, {}, read - started)

    def _generate(self, jobs: Sequence[Job], max_tokens: int) -> list[Tokens]:
        with foreign("transformers fails on these prompts", "leave out --compare"):
            return self._generated(jobs, max_tokens)

    def _generated(self, jobs: Sequence[Job], max_tokens: int) -> list[Tokens]:
        import torch

        prompts = [list(job.prompt) for job in jobs]
        width = max(map(len, prompts))
        rows = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor(rows, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                do_sample=False,
                max_new_tokens=max_tokens,
                eos_token_id=list(jobs[0].stop_ids) or None,
                pad_token_id=0,
            )
        rows = out[:, width:].tolist()
        return [
            _cut(row[: job.max_tokens], job.stop_ids) for row, job in zip(rows, jobs, strict=True)
        ]


def _cut(row: list[int], stop_ids: Sequence[int]) -> Tokens:
    """The row up to and including its end of text, without the padding after it."""
    ends = [place for place, token in enumerate(row) if token in stop_ids]
    return tuple(row[: ends[0] + 1] if ends else row)


def peer_of(target: Target) -> Peer:
    """Copies the target's weights into PyTorch.

    A target of random weights gets a model of the same shape with other random weights: its speed
    can be compared, its texts cannot.

    Raises:
      UserError: the weights cannot be written in Hugging Face's format, or `transformers` fails.
    """
    with foreign(f"transformers cannot run {target.name}", "leave out --compare"):
        return _peer_of(target)


def _peer_of(target: Target) -> Peer:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, str(target.model.dtype))
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if target.loaded is None:
        shape = hugging_face_config(target.name)
        config = AutoConfig.for_model(**shape)
        with torch.device(device):
            return Peer(AutoModelForCausalLM.from_config(config, dtype=dtype), device)
    with TemporaryDirectory() as directory:
        export_hugging_face(target.loaded, Path(directory))
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return Peer(model.to(device), device)
