"""`transformers` on the same prompts with the same weights, where it and PyTorch are installed."""

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from emsjax.bench.contenders import Spec
from emsjax.bench.decoding import Run
from emsjax.bench.prompts import Tokens
from emsjax.errors import UserError
from emsjax.jobs import Job
from emsjax.loading.export import export_hugging_face
from emsjax.loading.load import LoadedModel

PEER = Spec("transformers")


class Peer:
    """`generate` of `transformers`: left padding, attention mask, growing key-value cache."""

    def __init__(self, loaded: LoadedModel):
        """Copies the weights into PyTorch.

        Raises:
          UserError: PyTorch is not installed, or the weights cannot be written for it.
        """
        if importlib.util.find_spec("torch") is None:
            raise UserError(
                "comparing with transformers needs PyTorch: pip install 'emsjax[torch]'"
            )
        import torch
        from transformers import AutoModelForCausalLM

        with TemporaryDirectory() as directory:
            export_hugging_face(loaded, Path(directory))
            dtype = getattr(torch, str(loaded.model.dtype))  # type: ignore[attr-defined]
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        self._device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self._model: Any = model.to(self._device).eval()

    def decode(self, cache: Any, jobs: Sequence[Job], prefill: float = 0.0) -> tuple[Any, Run]:
        """Reads the prompts and writes their texts; the cache is not looked at.

        The time of the prompts is that of a run of one token.
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
    """Without the padding behind the end of text."""
    ends = [place for place, token in enumerate(row) if token in stop_ids]
    return tuple(row[: ends[0] + 1] if ends else row)
