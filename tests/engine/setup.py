"""Engines on tiny models, and what PyTorch `transformers` generates with the same weights."""

import functools
from typing import Any

import numpy as np
from flax import nnx
from transformers import AutoConfig

from emsjax.drafters import make_drafter
from emsjax.engine import Engine
from emsjax.jobs import Finished, Job
from emsjax.ladder import make_ladder
from emsjax.loading.load import load_model
from emsjax.models.decoder import DecoderLM
from emsjax.models.registry import FAMILIES
from tests.tiny import TINY, VOCAB_SIZE, checkpoint, oracle

EOS = 2


@functools.cache
def oracle_model(name: str) -> Any:
    """With the oracle's weights."""
    return load_model(checkpoint(name)).model


@functools.cache
def tiny_model(name: str) -> Any:
    """With weights of our own, which needs no PyTorch."""
    model_type, settings = TINY[name]
    config = AutoConfig.for_model(model_type, **settings, vocab_size=VOCAB_SIZE)
    return DecoderLM(FAMILIES[model_type].config(config.to_dict()), rngs=nnx.Rngs(0))


def make_engine(
    model: Any, drafter: str, num_slots: int, *, capacity: int = 512, exact: bool = False
) -> Engine:
    chosen = make_drafter(drafter, draft_length=7, max_ngram=3, min_ngram=1)
    ladder = make_ladder(num_slots, chosen.draft_length, exact=exact, prefill_chunk=64)
    return Engine(model, chosen, ladder, num_slots=num_slots, capacity=capacity)


def jobs(count: int = 20, longest: int = 200, stop_ids: tuple[int, ...] = (EOS,)) -> list[Job]:
    """Prompts of 1 to `longest` tokens that repeat themselves, 1 to 64 tokens to generate."""
    rng = np.random.default_rng(0)
    lengths = [1, longest, *rng.integers(2, longest, count - 2)]
    limits = [1, 64, *rng.integers(2, 64, count - 2)]
    made = []
    for key, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
        phrase = rng.integers(3, VOCAB_SIZE, rng.integers(1, 40))
        prompt = np.resize(phrase, length).tolist()
        made.append(Job(key, prompt, int(limit), stop_ids))
    return made


@functools.cache
def expected(name: str, prompt: tuple[int, ...], max_tokens: int, eos: int | None) -> list[int]:
    """Greedy text by `transformers`, one prompt alone."""
    import torch

    generated = oracle(name).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return generated[0, len(prompt) :].tolist()


def run_all(engine: Engine, todo: list[Job]) -> list[Finished]:
    """Results in the order of the jobs; each job has exactly one."""
    results = {finished.job.key: finished for finished in engine.run(todo)}
    assert sorted(results) == [job.key for job in todo]
    return [results[job.key] for job in todo]
