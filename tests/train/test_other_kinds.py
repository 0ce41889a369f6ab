"""Training hidden transfer and Jakiro heads from the same texts as the other kinds."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax import LLM, SamplingParams, UserError
from emsjax.engine.packing import pack
from emsjax.loading.draft_checkpoint import read_manifest
from emsjax.models.linear import Linear
from emsjax.models.recurrent_draft import Shared
from emsjax.train import least_squares
from emsjax.train.fit import Fitting
from emsjax.train.head_loss import unroll_head
from emsjax.train.run import train
from emsjax.train.settings import Training
from emsjax.train.state_loss import Frozen
from emsjax.train.whole_texts import read_whole
from tests.drafters.test_jakiro import jakiro_head
from tests.engine.setup import tiny_model
from tests.tiny import VOCAB_SIZE, checkpoint
from tests.train import runs
from tests.train.runs import PROMPTS, log
from tests.train.test_state_loss import LAYER, LENS, PLACES, batches

FITTING = Fitting(
    steps=80, rows=4, width=40, unroll=3, one_ahead=0.0, learning_rate=5e-3, evaluate_every=40
)
TRANSFER, JAKIRO = "hidden-transfer", "jakiro"
KINDS = (TRANSFER, pytest.param(JAKIRO, marks=pytest.mark.slow))


def training(corpus: Path, output: Path, kind: str) -> Training:
    return replace(runs.training(corpus, output, kind=kind, fitting=FITTING), layers=None)


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns a function that trains a draft of a kind, and returns where it is."""

    @cache
    def output_of(kind: str) -> Path:
        output = tmp_path_factory.mktemp(kind)
        if kind == JAKIRO:
            shutil.copytree(output_of(TRANSFER) / "texts", output / "texts")
        train(training(corpus, output, kind))
        return output

    return output_of


def test_the_solution_is_of_use_and_updates_improve_it(trained: Callable[[str], Path]):
    solved, _, updated = log(trained(TRANSFER))
    assert (solved.step, updated.step) == (0, 80)
    assert solved.accepted[0] > 0.05, "guessing would give about 0.01"
    assert updated.loss < solved.loss
    assert updated.accepted[0] > solved.accepted[0]
    assert updated.accepted[3:] == updated.accepted[2:-1], "no draft is longer than its places"
    manifest = read_manifest(trained(TRANSFER) / "draft")
    assert (manifest.sizes["first_layer"], manifest.sizes["places"]) == (1, 3)


@pytest.mark.slow
def test_the_loss_of_a_head_falls(trained: Callable[[str], Path]):
    halfway, end = log(trained(JAKIRO))
    assert end.loss < halfway.loss
    assert end.accepted[0] > 0.1, "guessing would give about 0.01"
    assert end.accepted[2] > end.accepted[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_draft_is_accepted_and_does_not_change_the_text(
    trained: Callable[[str], Path], kind: str
):
    prompts, params = PROMPTS[:6], SamplingParams(max_tokens=40, ignore_eos=True)
    model, options = str(checkpoint("llama3")), {"max_batch_size": 2, "max_model_len": 100}
    plain = LLM(model, drafter="none", **options)
    expected = [out.outputs[0].token_ids for out in plain.generate(prompts, params)]
    draft = str(trained(kind) / "draft")
    llm = LLM(model, drafter="draft-model", draft_model=draft, planner=False, **options)
    outputs = llm.generate(prompts, params)
    assert [out.outputs[0].token_ids for out in outputs] == expected
    # As many as training counted on its held-out texts.
    accepted = sum(out.metrics.accepted_tokens for out in outputs)
    steps = sum(out.metrics.drafted_by_position[0] for out in outputs)
    assert accepted / steps > 0.5 * log(trained(kind))[-1].accepted[-2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_for_another_target_is_refused(trained: Callable[[str], Path], kind: str):
    with pytest.raises(UserError, match=r"was trained for .*; train a draft"):
        LLM(str(checkpoint("mistral")), draft_model=str(trained(kind) / "draft"))


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (TRANSFER, {"places": 0}, "are not all positive"),
        (TRANSFER, {"first_layer": 3}, "are not all positive"),
        (TRANSFER, {"places": 7}, r"linear\.\w+ has shape .*, expected"),
        pytest.param(JAKIRO, {"head_dim": 0}, "are not all positive", marks=pytest.mark.slow),
        pytest.param(
            JAKIRO,
            {"intermediate_size": 9},
            r"kernel has shape .*, expected",
            marks=pytest.mark.slow,
        ),
        pytest.param(JAKIRO, {"depth": 9}, "unexpected keyword", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_draft_is_refused(
    trained: Callable[[str], Path], tmp_path: Path, kind: str, sizes: dict, message: str
):
    shutil.copytree(trained(kind) / "draft", tmp_path / "draft")
    file = tmp_path / "draft" / "draft.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"sizes": content["sizes"] | sizes}))
    with pytest.raises(UserError, match=message):
        LLM(str(checkpoint("llama3")), draft_model=str(tmp_path / "draft"))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (TRANSFER, {"layers": 3}, r"layers is 3, but .* has 3 layers"),
        (TRANSFER, {"width": 8}, r"width is 8, .* leave out --width"),
        (JAKIRO, {"layers": 2}, r"layers is 2, .* leave out --layers"),
    ],
)
def test_options_that_a_kind_does_not_have_are_refused(
    corpus: Path, tmp_path: Path, kind: str, given: dict, message: str
):
    with pytest.raises(UserError, match=message):
        train(replace(training(corpus, tmp_path, kind), **given))


def test_texts_without_room_for_a_draft_are_refused(
    corpus: Path, trained: Callable[[str], Path], tmp_path: Path
):
    shutil.copytree(trained(TRANSFER) / "texts", tmp_path / "texts")
    longer = replace(training(corpus, tmp_path, TRANSFER), fitting=replace(FITTING, unroll=41))
    with pytest.raises(UserError, match=r"room for a draft of 41 tokens, .* longest has 40"):
        train(longer)


def test_the_maps_are_the_closest_to_every_state_that_far_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(least_squares, "RIDGE", 1e-7)
    model, ahead = tiny_model("llama3"), 2
    target_def, params = nnx.split(model)
    read = jax.jit(lambda texts: read_whole(model, texts, LAYER, PLACES + 1))
    inputs, outputs = [], []
    for texts in batches():
        reading = read(texts)
        for row, count in enumerate(reading.counts.tolist()):
            for place in range(count - ahead + 1):
                inputs.append(np.asarray([*reading.inner[row, place], 1.0]))
                outputs.append(reading.inner[row, place + 1 : place + 1 + ahead].ravel())
    x, y = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
    assert len(x) == sum(LENS) - len(LENS) * (ahead - 1)
    assert len(x) > x.shape[1], "otherwise every state is met"
    expected = x @ np.linalg.lstsq(x, y)[0]
    embedding = model.embedder.tokens[...]
    shared = Shared(embedding, embedding, jnp.arange(VOCAB_SIZE, dtype=jnp.int32))
    linear = Linear(model.hidden_size, ahead * model.hidden_size, bias=True, rngs=nnx.Rngs(0))
    learnt = partial(least_squares.pairs_ahead, layer=LAYER, places=PLACES, ahead=ahead)
    least_squares.solve(linear, learnt, target_def, Frozen(shared, params), batches())
    found = linear(jnp.asarray(x[:, :-1], jnp.float32))
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_the_loss_of_a_head_counts_what_its_drafts_behind_each_token_guess():
    """Its rows are run one by one, text by text, with the kernels of decoding."""
    model, steps = tiny_model("llama3"), 3
    head, embedding = jakiro_head(model), model.embedder.tokens[...]
    ids = jnp.arange(0, VOCAB_SIZE, 2, dtype=jnp.int32)
    shared, texts = Shared(embedding, model.output_kernel[ids], ids), batches()[-2]
    counted = jax.jit(lambda texts: unroll_head(head, model, shared, texts, steps, PLACES))(texts)

    @jax.jit
    def run(
        tokens: jax.Array, start: jax.Array, states: jax.Array, after: jax.Array, cache: object
    ):
        batch = pack(tokens, start, jnp.ones(1, jnp.int32) * states.shape[0], states.shape[0])
        found, cache = head(batch, states, shared.embed(after), cache, max_q_len=states.shape[0])
        logits = model.logits(found[:, : model.hidden_size], shared)
        return found, ids[jnp.argmax(logits, axis=1)], cache

    right, reached = np.zeros(steps), np.zeros(steps)
    for row in range(texts.tokens.shape[0]):
        begin, end = int(texts.starts[row]), int(texts.lens[row])
        tokens = texts.tokens[row : row + 1]
        one = jnp.asarray([end], jnp.int32)
        target_cache, cache = (
            jnp.zeros(spec.shape, spec.dtype)
            for spec in (model.cache_spec(1, 128), head.cache_spec(1, 128))
        )
        zero = jnp.zeros(1, jnp.int32)
        hidden, _ = model(pack(tokens, zero, one, end), target_cache, max_q_len=end)
        states, guesses, cache = run(tokens, zero, hidden[:-1], tokens[0, 1:end], cache)
        for place in range(begin - 1, end - 2):
            state, guess, good, own = states[place : place + 1], guesses[place], True, cache
            for step in range(min(steps, end - 2 - place)):
                if step:
                    start, after = jnp.asarray([place + step]), tokens[0, place + step + 1][None]
                    state, guess, own = run(tokens, start, state, after, own)
                reached[step] += good
                good = good and int(guess.ravel()[0]) == int(tokens[0, place + step + 2])
                right[step] += good
    assert [float(x.reached) for x in counted] == reached.tolist()
    assert [float(x.right) for x in counted] == right.tolist()
