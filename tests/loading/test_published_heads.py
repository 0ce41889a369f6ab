"""Published heads are told from models, and refused in one sentence if they do not fit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emsjax import UserError
from emsjax.engine.drafter import passes_of
from emsjax.loading.drafter import load_drafter
from emsjax.loading.head_load import find_head
from emsjax.loading.load import LoadedModel, load_model
from tests.drafters.eagle_heads import FORMS, MODULE, TARGET, head_directory, tensors, write_head
from tests.tiny import checkpoint

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def target() -> LoadedModel:
    return load_model(checkpoint(TARGET))


def load(directory: Path, target: LoadedModel, **options: Any) -> Any:
    return load_drafter(directory, target, 3, dtype="auto", narrowest=4, **options)


def refusal(directory: Path, target: LoadedModel, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        load(directory, target, **options)
    return str(raised.value)


def test_a_model_is_no_head():
    assert find_head(checkpoint(TARGET)) is None
    assert find_head(checkpoint("opt")) is None


@pytest.mark.parametrize("name", FORMS)
def test_an_embedding_that_is_the_targets_is_not_kept_twice(name: str, target: LoadedModel):
    drafter = load(head_directory(name), target)
    assert drafter.weights.embedding is target.model.embedding_kernel
    own = "tokens" in drafter.weights.head
    assert own == (name == "specforge"), "that head is narrower than its target"
    assert drafter.read_bytes > 0


@pytest.mark.parametrize("name", FORMS)
def test_the_planner_knows_what_reading_every_step_costs(name: str, target: LoadedModel):
    """Rows of a step go through all of a head but its embedding and its output projection."""
    drafter = load(head_directory(name), target)
    others = ("lm_head.weight", "embed_tokens.weight", "d2t", "t2d")
    numbers = sum(x.size for key, x in tensors(name).items() if not key.endswith(others))
    assert passes_of(drafter, 1).observing == 4 * numbers


def test_an_embedding_that_was_trained_further_is_kept(tmp_path: Path, target: LoadedModel):
    kept = dict(tensors("speculators"))
    kept["embed_tokens.weight"] = kept["embed_tokens.weight"] * 1.1
    drafter = load(write_head(tmp_path, "speculators", kept=kept), target)
    np.testing.assert_array_equal(drafter.weights.head["tokens"][...], kept["embed_tokens.weight"])


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, (2, 1, 0)),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}, (0, 1, 2)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 1]}}, (1, 2, 2)),
    ],
)
def test_which_layers_are_read_depends_on_where_they_are_written(
    changes: dict[str, Any], layers: tuple[int, ...], tmp_path: Path, target: LoadedModel
):
    drafter = load(write_head(tmp_path, "eagle3", changes), target)
    assert drafter.hidden_layers == layers


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {name: held[name] for name in held if name not in names}


def replaced(**others: Any) -> Callable[[Tensors], Tensors]:
    return lambda held: held | others


def offsets(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], Tensors]:
    return lambda held: held | {"d2t": change(held["d2t"])}


SIZES = {"hidden_size": 24, "vocab_size": 99, "target_hidden_size": 24}
IDS = "eagle_aux_hidden_state_layer_ids"
OTHER_MODEL = {"verifier": {"name_or_path": "x", "architectures": ["Qwen3ForCausalLM"]}}
EMBEDDING = "embed_tokens.weight"
# head: name, changes of its configuration, change of its tensors, what the message says
WRONG: Mapping[str, tuple[str, dict[str, Any], Callable[[Tensors], Tensors] | None, list[str]]] = {
    "another target": (
        "eagle3",
        SIZES,
        None,
        ["hidden states of size 24, not 32", "vocabulary has 99 tokens, not 101"],
    ),
    "a target with more layers": (
        "speculators",
        {IDS: [2, 18, 33]},
        None,
        ["reads the inputs of the layers 2, 18, 33, of which there are 3"],
    ),
    "another family": (
        "speculators",
        {"speculators_config": OTHER_MODEL},
        None,
        ["was trained for a Qwen3ForCausalLM, not a LlamaForCausalLM"],
    ),
    "another model of the same sizes": (
        "eagle1",
        {},
        lambda held: held | {EMBEDDING: held[EMBEDDING][::-1]},
        ["its embedding is that of another model"],
    ),
    "half of it": (
        "specforge",
        {},
        without("midlayer.mlp.up_proj.weight", "norm.weight"),
        ["missing", "mlp.up_proj.weight, norm.weight"],
    ),
    "no table": ("eagle3", {}, without("d2t"), ["guesses 60 tokens and has no table d2t"]),
    "a table of another size": ("eagle3", {}, offsets(lambda x: x[:9]), ["one of 60 whole"]),
    "a table past the end": ("eagle3", {}, offsets(lambda x: x + 60), ["do not exist"]),
    "a table that repeats": ("eagle3", {}, offsets(lambda x: -np.arange(60)), ["twice"]),
    "P-EAGLE": ("eagle3", {}, replaced(mask_hidden=np.zeros(3)), ["is a P-EAGLE head"]),
    "another head of speculators": (
        "speculators",
        {"speculators_model_type": "dflash"},
        None,
        ["a dflash head of speculators, which is not supported"],
    ),
    "a size that is none": ("eagle3", {"draft_vocab_size": "many"}, None, ["draft_vocab_size"]),
    "layers that are none": ("eagle3", {IDS: ["low"]}, None, [IDS]),
    "a rotary embedding of an unknown kind": (
        "eagle3",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        None,
        ["rope scaling 'dynamic' is not supported"],
    ),
    "an MTP module for another target": (
        "mtp",
        {"hidden_size": 24, "vocab_size": 99},
        None,
        ["hidden states of size 24, not 32", "vocabulary has 99 tokens, not 101"],
    ),
    "an MTP module for another model of the same sizes": (
        "mtp",
        {},
        lambda held: held | {f"model.{EMBEDDING}": held[f"model.{EMBEDDING}"][::-1]},
        ["its embedding is that of another model"],
    ),
    "half of an MTP module": (
        "mtp",
        {},
        without(f"{MODULE}.input_proj.weight", f"{MODULE}.mlp.up_proj.weight"),
        ["missing", "mtp_layers.0.input_proj.weight, mtp_layers.0.mlp.up_proj.weight"],
    ),
    "more than an MTP module": (
        "mtp",
        {},
        lambda held: held | {f"{MODULE}.self_attn.q_norm.weight": np.zeros(16)},
        ["not part of this model", f"{MODULE}.self_attn.q_norm.weight"],
    ),
    "an MTP module with a map from states alone": (
        "mtp",
        {},
        lambda held: held | {f"{MODULE}.input_proj.weight": np.zeros((32, 32), np.float32)},
        [f"{MODULE}.input_proj.weight has [32, 32] where fc.kernel needs [32, 64]"],
    ),
    "an MTP module of another family": (
        "mtp",
        {"model_type": "qwen2", "num_nextn_predict_layers": None},
        None,
        ["is that of a qwen2, but only those of MiMo (mimo) are supported"],
    ),
    "an MTP module as DeepSeek has it": (
        "mtp",
        {},
        lambda _: {"model.layers.61.eh_proj.weight": np.zeros((32, 64), np.float32)},
        ["is an MTP module of another form than MiMo's, which is not supported; use"],
    ),
    "another activation": ("eagle3", {"hidden_act": "tanh"}, None, ["activation 'tanh'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_one_sentence(
    case: str, tmp_path: Path, target: LoadedModel
):
    name, changes, change, said = WRONG[case]
    kept = None if change is None else change(tensors(name))
    message = refusal(write_head(tmp_path, name, changes, kept), target)
    for each in said:
        assert each in message
    assert "draft_model=" in message
    assert len(message) < 500


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, target: LoadedModel):
    file = write_head(tmp_path, "speculators") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "truncated" in refusal(tmp_path, target)


def test_a_head_is_not_quantised(target: LoadedModel):
    message = refusal(head_directory("eagle1"), target, quantize="int8")
    assert "EAGLE-1 head stays as it is; leave out draft_quantize" in message
