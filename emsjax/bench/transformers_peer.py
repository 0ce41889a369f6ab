"""`transformers` on the same prompts, if PyTorch is installed."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from emsjax.bench.prompts import Tokens
from emsjax.bench.target import Target
from emsjax.bench.whole_job import Served
from emsjax.engine.job import Job
from emsjax.errors import foreign
from emsjax.loading.named import hugging_face_config


class Transformers:
    """`generate` of `transformers`: left padding, attention mask, growing K/V cache."""

    def __init__(self, model: Any, device: str, size: int):
        """Wraps a PyTorch model that is on `device`, for batches of `size` prompts."""
        self._model, self._device, self._size = model.eval(), device, size

    def serve(self, jobs: Sequence[Job]) -> Served:
        """Runs batch after batch, because it refills no slots; see `Peer`."""
        texts: list[Tokens] = []
        started = time.perf_counter()
        with foreign("transformers fails on these prompts", "leave out --compare"):
            for first in range(0, len(jobs), self._size):
                texts += self._generated(jobs[first : first + self._size])
        return Served(time.perf_counter() - started, texts, {})

    def close(self) -> None:
        """Nothing to end: the model serves all batch sizes."""

    def _generated(self, jobs: Sequence[Job]) -> list[Tokens]:
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
                max_new_tokens=max(job.max_tokens for job in jobs),
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


def load(target: Target, exported: Path | None) -> tuple[Any, str]:
    """Returns the target as a PyTorch model, and the device it is on.

    A target of random weights gets a model of the same shape with other random weights: its speed
    can be compared, its texts cannot.

    Args:
      target: the model.
      exported: a directory with its weights; None if they are random.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, str(target.model.dtype))
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if exported is None:
        config = AutoConfig.for_model(**hugging_face_config(target.name))
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype), device
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=dtype)
    return model.to(device), device
