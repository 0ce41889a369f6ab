"""Training a draft with the target's own last layers: the solution, the updates, the loss."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax import LLM, SamplingParams, UserError
from emsjax.engine.model import Inner
from emsjax.loading.draft_checkpoint import read_draft, read_manifest
from emsjax.train.fit import Fitting
from emsjax.train.run import train
from emsjax.train.settings import Training
from emsjax.train.state_loss import run_drafts
from emsjax.train.whole_texts import WholeTexts, read_whole
from tests.engine.setup import tiny_model
from tests.tiny import checkpoint
from tests.train import runs
from tests.train.runs import PROMPTS, log

FITTING = Fitting(
    steps=80, rows=4, width=40, unroll=3, one_ahead=0.0, learning_rate=5e-3, evaluate_every=80
)


def training(corpus: Path, output: Path) -> Training:
    return runs.training(corpus, output, kind="own-layers", width=48, fitting=FITTING)


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    train(training(corpus, output))
    return output


def test_the_solution_is_of_use_and_updates_improve_it(trained: Path):
    solved, updated = log(trained)
    assert (solved.step, updated.step) == (0, 80)
    assert solved.accepted[0] > 0.15, "guessing would give about 0.01"
    assert updated.loss < solved.loss
    assert updated.accepted[0] > solved.accepted[0]
    manifest = read_manifest(trained / "draft")
    assert manifest.kind == "own-layers"
    assert manifest.sizes["first_layer"] == 2


def test_without_updates_the_draft_is_the_solution(corpus: Path, trained: Path, tmp_path: Path):
    shutil.copytree(trained / "texts", tmp_path / "texts")
    settings = training(corpus, tmp_path)
    train(replace(settings, fitting=replace(FITTING, steps=0)))
    assert log(tmp_path) == log(trained)[:1]
    draft, _ = read_draft(tmp_path / "draft", np.float32)
    assert draft.mlp is None


def test_the_draft_is_accepted_and_does_not_change_the_text(trained: Path):
    prompts, params = PROMPTS[:6], SamplingParams(max_tokens=40, ignore_eos=True)
    model, options = str(checkpoint("llama3")), {"max_batch_size": 2, "max_model_len": 100}
    plain = LLM(model, drafter="none", **options)
    expected = [out.outputs[0].token_ids for out in plain.generate(prompts, params)]
    draft = str(trained / "draft")
    llm = LLM(model, drafter="draft-model", draft_model=draft, planner=False, **options)
    outputs = llm.generate(prompts, params)
    assert [out.outputs[0].token_ids for out in outputs] == expected
    # As many as training counted on its held-out texts.
    accepted = sum(out.metrics.accepted_tokens for out in outputs)
    steps = sum(out.metrics.drafted_by_position[0] for out in outputs)
    assert accepted / steps > 0.5 * log(trained)[-1].accepted[-2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mistral", r"was trained for .*, not for [^,;]*; train a draft"),
        ("opt-350m", r"was trained for .*, not for [^,;]*; train a draft"),
    ],
)
def test_a_draft_for_another_target_is_refused(trained: Path, name: str, message: str):
    with pytest.raises(UserError, match=message):
        LLM(str(checkpoint(name)), draft_model=str(trained / "draft"))


@pytest.mark.parametrize("size", ["hidden_size", "vocab_size", "num_layers"])
def test_the_size_that_differs_is_named(trained: Path, tmp_path: Path, size: str):
    shutil.copytree(trained / "draft", tmp_path / "draft")
    file = tmp_path / "draft" / "draft.json"
    content = json.loads(file.read_text())
    content["sizes"][size] += 7
    file.write_text(json.dumps(content))
    sizes = rf"whose {size} is \d+ and not {content['sizes'][size]}; train a draft"
    with pytest.raises(UserError, match=sizes):
        LLM(str(checkpoint("llama3")), draft_model=str(tmp_path / "draft"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "owl"}, "unknown kind 'owl'"),
        ({"sizes": {"first_layer": 3}}, "are not all positive"),
        ({"sizes": {"width": -1}}, "are not all positive"),
    ],
)
def test_a_damaged_manifest_is_refused(trained: Path, tmp_path: Path, changed: dict, message: str):
    shutil.copytree(trained / "draft", tmp_path / "draft")
    file = tmp_path / "draft" / "draft.json"
    content = json.loads(file.read_text())
    changed = changed | {"sizes": content["sizes"] | changed.get("sizes", {})}
    file.write_text(json.dumps(content | changed))
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "draft")


def test_a_model_without_a_shipped_draft_says_how_to_make_one():
    with pytest.raises(UserError, match=r"comes with no draft .* --kind own-layers"):
        LLM(str(checkpoint("llama3")), draft_model="own-layers")


def test_experts_have_no_derivatives(corpus: Path, tmp_path: Path):
    settings = replace(training(corpus, tmp_path), model=str(checkpoint("qwen3-moe")))
    with pytest.raises(UserError, match=r"80 updates go through .* leave out --steps"):
        train(settings)
    with pytest.raises(UserError, match=r"layers is 3, but .* has 3 layers"):
        train(replace(training(corpus, tmp_path), layers=3))


@pytest.mark.parametrize("name", ["qwen2-mixed", "gemma2"])
def test_drafts_of_true_states_end_in_the_targets_own_states(name: str):
    """All rows of all drafts see the text before them and their own draft, and nothing else."""
    model, steps, places, layer = tiny_model(name), 3, 12, 1
    rng = np.random.default_rng(0)
    lens = np.asarray([60, 37], np.int32)
    texts = WholeTexts(rng.integers(3, 100, (2, 64)).astype(np.int32), lens - places, lens)

    @jax.jit
    def both(texts: WholeTexts) -> tuple[jax.Array, jax.Array]:
        reading = read_whole(model, texts, layer, places)
        true = jnp.stack([jnp.roll(reading.inner, -step - 1, axis=1) for step in range(steps)])
        found = run_drafts(model, Inner(true, layer), reading, texts.starts)
        return found, reading.hidden

    found, expected = both(jax.tree.map(jnp.asarray, texts))
    for step in range(steps):
        there = places - step - 1
        np.testing.assert_allclose(
            found[step, :, :there], expected[:, step + 1 :], rtol=1e-3, atol=1e-4
        )
    assert nnx.state(model)
