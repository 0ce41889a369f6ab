"""Draft models by name: they must fit the target, and they do not change its text."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emsjax import LLM, SamplingParams, UserError, build_engine
from emsjax.drafters import Eagle
from emsjax.loading import load
from emsjax.loading.draft_checkpoint import MANIFEST
from emsjax.loading.drafter import check_vocabulary, load_drafter
from emsjax.loading.load import LoadedModel, load_model
from tests.drafters.eagle_heads import MODULE, tensors
from tests.tiny import checkpoint

OPTIONS = {"max_batch_size": 2, "max_model_len": 100}
PROMPTS = [[5, 6, 7], [8, 9, 5, 6], [11]]
PARAMS = SamplingParams(max_tokens=30)


class Vocabulary:
    """A tokenizer with a vocabulary only."""

    def __init__(self, *tokens: str):
        self._tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self._tokens)}


def named(name: str, *tokens: str) -> LoadedModel:
    return LoadedModel(None, Vocabulary(*tokens), (), name, {}, {})  # type: ignore[arg-type]


def test_any_model_with_the_same_vocabulary_can_draft():
    target, draft = str(checkpoint("llama3")), str(checkpoint("opt"))
    plain = LLM(target, drafter="none", **OPTIONS).generate(PROMPTS, PARAMS)
    for drafter in ("draft-model", None):
        llm = LLM(target, drafter=drafter, draft_model=draft, planner=False, **OPTIONS)
        outputs = llm.generate(PROMPTS, PARAMS)
        assert sum(o.metrics.drafted_tokens for o in outputs) > len(PROMPTS)
        assert [o.outputs[0].token_ids for o in outputs] == [p.outputs[0].token_ids for p in plain]


def test_a_draft_model_as_large_as_its_target_causes_a_warning(capsys: pytest.CaptureFixture):
    model = str(checkpoint("llama3"))
    LLM(model, drafter="draft-model", draft_model=model, **OPTIONS)
    assert "is not smaller than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (("a", "x", "c"), "token 1 is 'x' there and 'b' here"),
        (("a", "b"), "token 2 is missing there and 'c' here"),
        (("a", "b", "c", "d"), "token 3 is 'd' there and missing here"),
    ],
)
def test_the_first_difference_of_the_vocabularies_is_named(theirs: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        check_vocabulary(named("draft", *theirs), named("target", "a", "b", "c"))
    check_vocabulary(named("draft", "a", "b"), named("target", "a", "b"))


def test_vocabularies_with_gaps_are_compared_beyond_them():
    ours, same, other = (
        SimpleNamespace(name="x", tokenizer=SimpleNamespace(get_vocab=lambda v=v: v))
        for v in ({"a": 0, "b": 9}, {"b": 9, "a": 0}, {"a": 0, "c": 9})
    )
    check_vocabulary(same, ours)
    with pytest.raises(UserError, match="token 9 is 'c' there and 'b' here"):
        check_vocabulary(other, ours)


def test_without_tokenizers_the_sizes_must_agree():
    def of_size(size: int) -> LoadedModel:
        return LoadedModel(SimpleNamespace(vocab_size=size), None, (), f"of {size}", {}, {})  # type: ignore[arg-type]

    check_vocabulary(of_size(7), of_size(7))
    with pytest.raises(UserError, match="of 8 has 8 tokens and of 7 has 7"):
        check_vocabulary(of_size(8), of_size(7))


def test_the_cache_of_a_draft_model_counts(monkeypatch: pytest.MonkeyPatch):
    target, layers, one_layer = str(checkpoint("llama3")), 3, 256 * 128 * 4  # tokens, lanes, bytes
    monkeypatch.setattr(build_engine, "free_bytes", lambda: 6 * layers * one_layer)
    LLM(target, drafter="none", max_batch_size=6, max_model_len=200)
    with pytest.raises(UserError, match="largest batch size that fits is 2"):
        LLM(
            target,
            drafter="draft-model",
            draft_model=str(checkpoint("opt")),
            max_batch_size=6,
            max_model_len=200,
        )


@pytest.mark.parametrize("method", ["vanilla", "unpad-input"])
def test_an_aligned_cache_is_refused_for_models_with_windows(method: str):
    with pytest.raises(UserError, match=f"method '{method}' aligns the cache"):
        LLM(str(checkpoint("mistral")), method=method)


def test_a_padded_method_can_be_chosen_by_name():
    outputs = LLM(str(checkpoint("llama3")), method="vanilla").generate([[5, 6, 7] * 9])
    assert outputs[0].metrics.emitted_tokens > 0


def test_a_quantised_draft_model_leaves_the_text_as_it_is():
    target, draft = str(checkpoint("llama3")), str(checkpoint("opt"))
    plain = LLM(target, drafter="none", **OPTIONS).generate(PROMPTS, PARAMS)
    llm = LLM(target, draft_model=draft, draft_quantize="int8", planner=False, **OPTIONS)
    outputs = llm.generate(PROMPTS, PARAMS)
    assert [o.outputs[0].token_ids for o in outputs] == [p.outputs[0].token_ids for p in plain]
    weights = llm.engine.drafter.model.weights  # type: ignore[attr-defined]
    assert jnp.dtype(jnp.int8) in {x.dtype for x in jax.tree.leaves(weights)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_quantize": "int3"}, "^draft_quantize 'int3' is unknown"),
        (
            {"drafter": "prompt-lookup", "draft_quantize": "int8"},
            "draft_quantize is for the drafter 'draft-model' or 'combined'; leave out",
        ),
    ],
)
def test_what_a_draft_cannot_be_quantised_to(options: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        LLM(str(checkpoint("llama3")), **options)


def test_a_trained_draft_is_not_quantised(tmp_path: Path):
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="was trained for a target and stays as it is; leave out d"):
        load_drafter(tmp_path, named("a target"), 3, dtype="auto", quantize="int8", narrowest=8)


def test_a_draft_that_does_not_exist_is_named_by_its_option() -> None:
    with pytest.raises(UserError, match=r"^draft_model='~/no/such/one': model '~/no"):
        load_drafter("~/no/such/one", named("a target"), 3, dtype="auto", narrowest=8)


@pytest.mark.parametrize("option", ["draft_model", "tokenizer"])
def test_what_does_not_exist_is_found_before_the_weights_are_read(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the weights were read first")

    monkeypatch.setattr(load, "read_weights", read)
    with pytest.raises(UserError, match=rf"^{option}='~/no/such/one': model '~/no"):
        LLM(str(checkpoint("llama3")), **{option: "~/no/such/one"})


def test_the_target_drafts_for_itself_by_name():
    target = str(checkpoint("llama3"))
    plain = LLM(target, drafter="none", **OPTIONS).generate(PROMPTS, PARAMS)
    options = {"draft_model": "self-window", **OPTIONS}
    llm = LLM(target, drafter="draft-model", planner=False, **options)
    outputs = llm.generate(PROMPTS, PARAMS)
    assert [o.outputs[0].token_ids for o in outputs] == [p.outputs[0].token_ids for p in plain]
    # These texts are shorter than the window, so all is right but what a limit cuts.
    metrics = [o.metrics for o in outputs]
    assert sum(m.accepted_tokens for m in metrics) > 0.8 * sum(m.drafted_tokens for m in metrics)
    with pytest.raises(UserError, match="leave out draft_quantize"):
        LLM(target, draft_quantize="int8", **options)


def with_module(directory: Path) -> str:
    """Writes a MiMo model with its MTP module, in a directory that is made."""
    shutil.copytree(checkpoint("mimo"), directory)
    file = directory / "model.safetensors"
    module = {name: x for name, x in tensors("mtp").items() if name.startswith(MODULE)}
    # A second module, which is not used.
    more = {name.replace(".0.", ".1."): x for name, x in module.items()}
    save_file(load_file(file) | module | more, file, metadata={"format": "pt"})
    return str(directory)


def test_the_module_in_a_models_own_checkpoint_drafts_by_name(tmp_path: Path):
    target = with_module(tmp_path / "mimo")
    params = [SamplingParams(max_tokens=30, temperature=t, seed=3) for t in (0, 0.8, 1.2)]
    plain = LLM(target, drafter="none", **OPTIONS).generate(PROMPTS, params)
    asked = {"method": "mtp", "num_speculative_tokens": 3}
    llm = LLM(target, speculative_config=asked, planner=False, **OPTIONS)
    outputs = llm.generate(PROMPTS, params)
    assert [o.outputs[0].token_ids for o in outputs] == [p.outputs[0].token_ids for p in plain]
    assert sum(o.metrics.drafted_tokens for o in outputs) > 100
    drafter = llm.engine.drafter
    assert isinstance(drafter, Eagle)
    assert drafter.name == "mimo (MTP)"
    found = drafter.weights.head["fc"]["kernel"][...]
    np.testing.assert_array_equal(found, tensors("mtp")[f"{MODULE}.input_proj.weight"])
    # Named by its directory, it is no model that is as large as the target.
    loaded = load_model(target)
    named = load_drafter(target, loaded, 3, dtype="auto", narrowest=8)
    assert isinstance(named, Eagle)
    with pytest.raises(UserError, match="MTP head stays as it is; leave out draft_quantize"):
        load_drafter("mtp", loaded, 3, dtype="auto", quantize="int8", narrowest=8)


@pytest.mark.parametrize("name", ["mimo", "opt"])
def test_a_model_may_have_no_module(name: str):
    message = f"checkpoint of {checkpoint(name).name} has no MTP module, as MiMo's have; use"
    with pytest.raises(UserError, match=message):
        LLM(str(checkpoint(name)), draft_model="mtp", **OPTIONS)
