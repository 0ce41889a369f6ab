"""Cases for `test_divided.py`: drafters that read or run a target which devices share."""

import dataclasses
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from emsjax.drafters import Combined, DraftModel, PromptLookup
from emsjax.engine.devices import CACHE, SAME, shared_by
from emsjax.engine.drafter import passes_of
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.model import View
from emsjax.errors import UserError
from emsjax.limits import HIDDEN_TRANSFER, JAKIRO, SELF_WINDOW
from emsjax.loading import fit
from emsjax.loading.draft_checkpoint import DraftManifest, probe, save_draft
from emsjax.loading.drafter import load_drafter
from emsjax.loading.head_guesses import first_guesses, guess_all
from emsjax.loading.load import LoadedModel, load_model
from emsjax.models.hidden_transfer import HiddenTransfer, TransferConfig
from emsjax.sampling.choice import make_choice
from emsjax.sampling.guess import Guesses, guess
from emsjax.sampling.vocabulary import WHOLE, DividedVocabulary, Vocabulary
from tests.drafters import block_heads, eagle_heads
from tests.drafters.test_jakiro import jakiro_head
from tests.engine.collectives import collectives, overtaking
from tests.engine.divided_cases import BIAS, CHOICES, in_parts, sampling_slots
from tests.engine.setup import jobs, make_engine, oracle_model, run_all
from tests.ladders import one_rung, two_rungs
from tests.tiny import VOCAB_SIZE, checkpoint, temporary_directory

SLOW = pytest.mark.slow
TARGET, SLOTS, LENGTH = "llama", 3, 4


@cache
def target(number: int) -> LoadedModel:
    return load_model(checkpoint(TARGET), devices=shared_by(number))


@cache
def trained(kind: str) -> Path:
    """Returns a random draft in the format of `emsjax.train`."""
    model = oracle_model(TARGET)
    if kind == JAKIRO:
        head: Any = jakiro_head(model)
        width, heads = model.hidden_size, model.config
        sizes = {"hidden_size": width, "intermediate_size": 24, "vocab_size": VOCAB_SIZE}
        names = "num_heads", "num_kv_heads", "head_dim"
        sizes |= {name: getattr(heads, name) for name in names}
    else:
        config = TransferConfig(32, 32, VOCAB_SIZE, model.num_layers, 1, LENGTH)
        head, sizes = HiddenTransfer(config, rngs=nnx.Rngs(5)), dataclasses.asdict(config)
    directory = temporary_directory(f"{kind}-")
    manifest = DraftManifest(TARGET, probe(model), sizes, "nothing", kind=kind)
    save_draft(directory, head, np.arange(0, VOCAB_SIZE, 2), manifest)
    return directory


def directory_of(kind: str) -> str | Path:
    if kind in (JAKIRO, HIDDEN_TRANSFER):
        return trained(kind)
    if kind in eagle_heads.FORMS:
        return eagle_heads.head_directory(kind)
    return block_heads.head_directory(kind) if kind in block_heads.CONFIGS else kind


def drafter_of(kind: str, number: int) -> Any:
    """Loads a drafter; the drafts of some branch."""
    drafter = load_drafter(directory_of(kind), target(number), LENGTH, dtype="auto", narrowest=4)
    if kind == SELF_WINDOW:
        return dataclasses.replace(drafter, view=View(2, 20))
    branches = kind in ("eagle1", "dflash-sliding")
    return dataclasses.replace(drafter, beam_rows=2 * SLOTS if branches else 1)


def half_sampled() -> list[Job]:
    """Returns jobs of which the first is sampled, so that one program decodes all of them."""
    sampled = make_choice(seed=3, temperature=1.0, top_k=40)
    todo = jobs(6, longest=60)
    return [job if job.key % 2 else dataclasses.replace(job, choice=sampled) for job in todo]


def engine_of(number: int, drafter: Any) -> Engine:
    # Trees need two rungs; with one, costs would mostly be against drafts.
    tree = getattr(drafter, "beam_rows", 1) > 1
    options = {"make": two_rungs, "costs": 0.1} if tree else {"make": one_rung}
    devices = target(number).devices
    return make_engine(target(number).model, drafter, SLOTS, devices=devices, trace=True, **options)


def results_of(number: int, drafter: Any, greedy: bool = False) -> list[tuple]:
    """Returns what was written, and what was drafted in each step.

    Args:
      number: of devices.
      drafter: loaded for them.
      greedy: whether the program for greedy jobs decodes some first.
    """
    engine = engine_of(number, drafter)
    done = run_all(engine, jobs(6, longest=60)) if greedy else []
    done += run_all(engine, half_sampled())
    assert number == 1 or not overtaking(engine.lower(sampling=True).compile().as_text())
    return [(each.token_ids, each.trace.steps) for each in done if each.trace is not None]


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("eagle1", 2),
        *(
            pytest.param(kind, 4 if kind == "dflash-sliding" else 2, marks=SLOW)
            for kind in (
                "eagle3",
                "dflash-sliding",
                "medusa",
                "mtp",
                JAKIRO,
                HIDDEN_TRANSFER,
                SELF_WINDOW,
            )
        ),
    ],
)
def test_texts_and_drafts_are_those_of_one_device(kind: str, number: int):
    """All weights of a head are on every device. Some guess among the target's divided logits."""
    # The program for greedy batches takes as long to compile, and drafts in few ways.
    greedy = kind in ("eagle3", "medusa")
    alone, shared = (results_of(each, drafter_of(kind, each), greedy) for each in (1, number))
    for half in (alone[:6], alone[-6:]):
        assert sum(len(step.drafted) for _, steps in half for step in steps) > 20
    assert shared == alone


def test_a_head_is_tried_on_several_devices():
    text = np.random.default_rng(2).integers(3, VOCAB_SIZE, 40).tolist()

    def tried(number: int) -> list[np.ndarray]:
        eagle, dflash = (drafter_of(kind, number) for kind in ("eagle1", "dflash"))
        (guesses,), chosen = guess_all(eagle, target(number), text, [()])
        return [guesses, chosen, *first_guesses(dflash, target(number), text, range(30))]

    for one, other in zip(tried(1), tried(2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_drafting_exchanges_embeddings_and_choices_alone():
    """A pass of an EAGLE head looks a row up, and finds the likeliest token and its share."""
    drafter = load_drafter(directory_of("eagle1"), target(2), LENGTH, dtype="auto", narrowest=4)
    options = {"devices": target(2).devices, "make": one_rung}
    engine = make_engine(target(2).model, drafter, 8, costs=0.1, **options)
    assert engine.ladder[0].capacity == 8
    assert collectives(engine.lower().compile().as_text()) == {
        # Two sums of a layer and the embedding of a step's rows, of the tokens after them, and of
        # the rows of a pass.
        "all-reduce f32[8,32]": 3 + 1 + 1,
        # The choice of the target and that of the head.
        "all-gather s32[2,2,8]": 1 + 1,
        # The share of what the head has chosen: its logit, with the largest sum, and the sums.
        "all-reduce f32[8,1]": 1,
        "all-reduce f32[8]": 1,
    }


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("llama3", (6, 1, 1)),
        (SELF_WINDOW, (6, 1, 1)),
        (HIDDEN_TRANSFER, (4, 1, 1)),
        ("eagle1", ()),
    ],
)
def test_the_planner_knows_what_drafting_exchanges(kind: str, part: tuple[int, ...]):
    """Two sums of each layer that runs, the embedding and the choice; heads exchange little."""
    draft = checkpoint(kind) if kind == "llama3" else directory_of(kind)
    for number in (1, 2):
        drafter = load_drafter(draft, target(number), LENGTH, dtype="auto", narrowest=4)
        found = passes_of(drafter, SLOTS).exchanges
        assert tuple(each.times for each in found) == (part if number > 1 else ())


@SLOW
def test_a_draft_model_is_divided_like_its_target(capsys: pytest.CaptureFixture[str]):
    found, draft = [], checkpoint("llama3")
    for number in (1, 2):
        drafter = load_drafter(draft, target(number), LENGTH, dtype="auto", narrowest=4)
        assert isinstance(drafter, DraftModel)
        assert drafter.state_places[0] == (SAME if number == 1 else CACHE)
        found.append(results_of(number, Combined(PromptLookup(7, 3, 1), drafter)))
    assert found[0] == found[1]
    said = capsys.readouterr().err
    assert said.count(f"note: the draft model {draft.name} is divided among 2 devices\n") == 1


def test_a_draft_model_that_cannot_be_divided_is_on_every_device(
    capsys: pytest.CaptureFixture[str],
):
    wide = load_model(checkpoint("eight"), devices=shared_by(8))
    drafter = load_drafter(checkpoint(TARGET), wide, 3, dtype="auto", narrowest=4)
    assert isinstance(drafter, DraftModel)
    assert drafter.vocabulary is WHOLE
    assert " cannot be divided and is whole on each of 8 devices\n" in capsys.readouterr().err


@pytest.mark.parametrize("quantize", [None, "int8", "none"])
def test_a_draft_model_that_does_not_fit_is_refused(
    quantize: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fit, "free_bytes", lambda: 2000)
    options = {"dtype": "float32", "quantize": quantize, "narrowest": 1}
    with pytest.raises(UserError, match=r"draft model .* GiB on each of 2 devices, and 0\.0 GiB"):
        load_drafter(checkpoint("llama3"), target(2), 3, **options)


@pytest.mark.parametrize("width", [303, 120])
def test_guesses_of_parts_are_those_of_all_logits(width: int):
    """The draft model may have fewer tokens than the target, or more."""
    rows, state = sampling_slots()
    rng, count = np.random.default_rng(1), 8 * len(CHOICES)
    logits = (3 * rng.normal(size=(count, width))).astype(np.float32)
    size = len(BIAS)

    def guessed(logits: Any, rows: Any, state: Any, of: Vocabulary = WHOLE) -> Guesses:
        return guess(of.fitted(logits, size), rows, state, 3, of)

    divided = partial(guessed, of=DividedVocabulary(size))
    found = in_parts(4, divided, logits, rows, state)
    alone = jax.jit(guessed)(logits, rows, state)
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_allclose(found.confidence, alone.confidence, atol=1e-5)
    assert len(np.unique(alone.tokens)) > 20
