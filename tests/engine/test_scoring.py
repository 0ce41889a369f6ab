"""Log-probabilities of prompts equal those of `transformers`."""

import numpy as np
import pytest

from emsjax.engine.job import Finished, Job
from emsjax.engine.slots import Slots
from emsjax.sampling.choice import make_choice
from tests.engine.setup import make_engine, oracle_model
from tests.tiny import VOCAB_SIZE, oracle

PROMPTS = [[5], [5, 6], list(np.random.default_rng(3).integers(3, VOCAB_SIZE, 150))]


def expected(prompt: list[int]) -> np.ndarray:
    """Returns the log-probabilities of all tokens after each of the prompt's, float64[n, V]."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        logits = oracle("llama")(torch.tensor([prompt])).logits[0].double()
    return torch.log_softmax(logits, dim=-1).numpy()


@pytest.mark.parametrize("exact", [False, True])
def test_prompts_of_any_length_are_scored(exact: bool):
    """The longest takes several steps, the shortest none."""
    engine = make_engine(oracle_model("llama"), "prompt-lookup", 2, exact=exact)
    # Numbers that are none, in place of an empty cache.
    engine._new_cache = lambda spec: np.full(spec.shape, np.nan, spec.dtype)
    choice = make_choice(seed=1, temperature=1.0)
    jobs = [
        Job(n, prompt, 3, choice=choice, scores_prompt=n != 1) for n, prompt in enumerate(PROMPTS)
    ]
    slots = Slots(engine)
    slots.submit(jobs)
    done: dict[object, Finished] = {}
    while slots.busy:
        done.update({each.job.key: each for each in slots.step().ended})
    assert done[1].prompt_logprobs is None
    assert done[0].prompt_logprobs.chosen.shape == (0,)
    found, wanted = done[2].prompt_logprobs, expected(PROMPTS[2])[:-1]
    rows, following = np.arange(len(wanted)), np.asarray(PROMPTS[2][1:])
    np.testing.assert_allclose(found.chosen, wanted[rows, following], atol=1e-4)
    np.testing.assert_allclose(found.top, -np.sort(-wanted, axis=1)[:, :20], atol=1e-4)
    assert (np.take_along_axis(wanted, found.top_ids, axis=1) >= found.top - 1e-4).all()
    assert (found.rank == 1 + (wanted > wanted[rows, following][:, None]).sum(axis=1)).all()
