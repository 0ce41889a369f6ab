"""DFlash and Medusa heads are told by their tensors, and refused in one sentence if they misfit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emsjax import UserError
from emsjax.engine.drafter import passes_of
from emsjax.loading.drafter import load_drafter
from emsjax.loading.load import LoadedModel, load_model
from tests.drafters.block_heads import CONFIGS, MASK, head_directory, tensors, write_head
from tests.tiny import checkpoint

pytest.importorskip("torch")
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def target() -> LoadedModel:
    return load_model(checkpoint("llama"))


def load(directory: Path, target: LoadedModel) -> Any:
    return load_drafter(directory, target, 3, dtype="auto", narrowest=4)


def test_medusa_heads_are_counted_by_their_tensors(target: LoadedModel):
    found = {name: load(head_directory(name), target) for name in CONFIGS if "medusa" in name}
    assert [each.num_heads for each in found.values()] == [4, 3, 3]
    heads = found["medusa-one-output"].weights.heads
    assert len(heads["outputs"]) == 1


@pytest.mark.parametrize("name", ["dflash", "medusa"])
def test_the_planner_knows_what_reading_every_step_costs(name: str, target: LoadedModel):
    """A DFlash head makes K/V of what the target has read; Medusa heads read nothing."""
    made = ("fc.weight", "k_proj.weight", "v_proj.weight")
    numbers = sum(x.size for key, x in tensors(name).items() if key.endswith(made))
    assert passes_of(load(head_directory(name), target), 1).observing == 4 * numbers


def test_layers_that_are_not_named_are_evenly_spaced(tmp_path: Path, target: LoadedModel):
    settings = {"mask_token_id": MASK}
    kept = {name: x for name, x in tensors("dflash-sliding").items() if name[:8] != "layers.1"}
    changes = {"dflash_config": settings, "num_hidden_layers": 1, "layer_types": None}
    one = load(write_head(tmp_path, "dflash-sliding", changes, kept), target)
    assert one.hidden_layers == (2,), "the input of the layer after the middle one"
    assert (one.block, one.mask_token) == (16, MASK)


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {name: held[name] for name in held if name not in names}


def replaced(**others: Any) -> Callable[[Tensors], Tensors]:
    return lambda held: held | others


def settings(**changes: Any) -> dict[str, Any]:
    return {"dflash_config": {**CONFIGS["dflash"]["dflash_config"], **changes}}


# head: name, changes of its configuration, change of its tensors, what the message says
WRONG: Mapping[str, tuple[str, dict[str, Any], Callable[[Tensors], Tensors] | None, list[str]]] = {
    "another target": (
        "dflash",
        {"hidden_size": 24, "vocab_size": 99},
        None,
        ["hidden states of size 24, not 32", "vocabulary has 99 tokens, not 101"],
    ),
    "more layers": (
        "dflash",
        settings(target_layer_ids=[1, 9]),
        None,
        ["reads the inputs of the layers 2, 10, of which there are 3"],
    ),
    "no layers at all": (
        "dflash",
        settings(target_layer_ids=[]),
        None,
        ["target_layer_ids is [], not a list"],
    ),
    "no such mask token": ("dflash", settings(mask_token_id=500), None, ["mask token is 500"]),
    "no mask token": ("dflash", settings(mask_token_id=None), None, ["mask_token_id is None"]),
    "a mask token that is none": (
        "dflash",
        settings(mask_token_id=True),
        None,
        ["mask_token_id is True"],
    ),
    "half a DFlash head": (
        "dflash",
        {},
        without("layers.1.mlp.up_proj.weight", "norm.weight"),
        ["missing", "norm.weight"],
    ),
    "a window that looks both ways": (
        "dflash-sliding",
        {"is_causal": False},
        None,
        ["looks both ways within a sliding window"],
    ),
    "a window that is none": (
        "dflash-sliding",
        {"sliding_window": "wide"},
        None,
        ["sliding_window is wide, not a size"],
    ),
    "a block that is too large": (
        "dflash",
        settings(block_size=10**6),
        None,
        ["block_size 1000000"],
    ),
    "Medusa with a number that is none": (
        "medusa",
        {},
        lambda held: held | {"123456789.0.linear.weight": held["0.0.linear.weight"]},
        ["by their numbers there are 123456790 of 1 layers each", "5 layers are there"],
    ),
    "Medusa in two layouts": (
        "medusa",
        {},
        lambda held: held | {"blocks.0.layers.0.weight": held["0.0.linear.weight"]},
        ["check that configuration and weights belong together"],
    ),
    "DFlash-2": (
        "dflash",
        {},
        replaced(**{"candidate_selector.predecessor_codebook": np.zeros(3)}),
        ["is a DFlash-2 head"],
    ),
    "half of Medusa": ("medusa", {}, without("1.1.weight"), ["missing 1.1.weight"]),
    "Medusa for a wider model": (
        "medusa",
        {},
        lambda held: {name: np.repeat(x, 2, axis=-1) for name, x in held.items()},
        ["hidden states of size 64, not 32"],
    ),
    "no table": ("medusa-vllm", {}, without("token_map"), ["guesses 60 tokens, not 101"]),
    "a table of another size": (
        "medusa-vllm",
        {},
        replaced(token_map=np.arange(9)),
        ["its table token_map is not one of 60"],
    ),
    "a table that repeats": (
        "medusa-vllm",
        {},
        replaced(token_map=np.zeros(60, np.int64)),
        ["its table token_map names tokens that do not exist, or some of them twice"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_one_sentence(
    case: str, tmp_path: Path, target: LoadedModel
):
    name, changes, change, said = WRONG[case]
    kept = None if change is None else change(tensors(name))
    with pytest.raises(UserError) as raised:
        load(write_head(tmp_path, name, changes, kept), target)
    message = str(raised.value)
    for each in said:
        assert each in message
    assert "draft_model=" in message
    assert len(message) < 500


def test_a_medusa_file_that_is_cut_off_is_refused(tmp_path: Path, target: LoadedModel):
    file = write_head(tmp_path, "medusa") / "medusa_lm_head.pt"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"medusa_lm_head\.pt"):
        load(tmp_path, target)
