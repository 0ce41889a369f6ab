"""Every kind of drafter under every sampling option: the text is that of plain decoding.

The drafters have random weights, and all but the lookup compete with what is found in the text. All
options of a batch are drawn together, so that they meet windows, stops and refilled slots.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from flax import nnx
from hypothesis import given, settings

from emsjax.drafters import Combined, PromptLookup
from emsjax.drafters.medusa import Medusa
from emsjax.drafters.medusa import Parts as MedusaParts
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.models.medusa_heads import MedusaConfig, MedusaHeads
from tests.drafters.test_jakiro import jakiro
from tests.engine.drawn import MODEL, SLOTS, assert_same, batches, decode, engine_for, one_of
from tests.engine.setup import (
    alike,
    costs_of,
    dflash,
    eagle,
    hidden_transfer,
    mtp,
    own_layers,
    recurrent,
    self_window,
    tiny_model,
)

LOOKUP = PromptLookup(7, 3, 1, matches=4)
ROOM = {"beam_rows": 2 * SLOTS}  # for two branches in every slot


def medusa(model: Any) -> Medusa:
    config = MedusaConfig(model.hidden_size, 4, 1, model.vocab_size, bias=True)
    graphdef, params = nnx.split(MedusaHeads(config, rngs=nnx.Rngs(6)))
    weights, merge = MedusaParts(params, None), functools.partial(nnx.merge, graphdef)
    sizes = model.vocab_size, model.hidden_size, config.num_heads
    return Medusa("random", weights, merge, *sizes, read_bytes=1, **ROOM)


KINDS: Mapping[str, Callable[[Any], Drafter]] = {
    "recurrent": lambda model: replace(recurrent(model), **ROOM),
    "eagle": lambda model: replace(eagle(model), **ROOM),
    "hidden-transfer": lambda model: hidden_transfer(model, **ROOM),
    "self-window": self_window,
    "jakiro": lambda model: replace(jakiro(model), **ROOM),
    "dflash": lambda model: dflash(model, **ROOM),
    "medusa": medusa,
    "mtp": lambda model: replace(mtp(model), **ROOM),
    "own-layers": own_layers,
    "draft-model": alike,
}
# Guesses that grow step by step, with a cache of their own, and in the target's as a tree and a
# chain. The others are slow tests.
QUICK = ("recurrent", "eagle", "hidden-transfer", "self-window")


@functools.cache
def engine(kind: str) -> Engine:
    if kind == "none":
        return engine_for("none")
    if kind == "prompt-lookup":
        return engine_for(LOOKUP, costs=0.0)
    return engine_for(Combined(LOOKUP, KINDS[kind](tiny_model(MODEL)), tree=True), costs=0.0)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow)
        for kind in (*KINDS, "prompt-lookup")
    ],
)
def test_whatever_is_asked_for(kind: str):
    accepted = 0

    @settings(max_examples=10, derandomize=True)
    @given(batches(), one_of(0.0, 0.0, 1.0, 30.0))
    def check(drawn: list, price: float) -> None:
        """A guess costs nothing, as much as a row, or more than it is worth."""
        nonlocal accepted
        drafting = engine(kind)
        drafting.use_costs(costs_of(drafting.ladder, price))
        results = decode(drafting, drawn)
        assert_same(results, decode(engine("none"), drawn))
        accepted += sum(result.metrics.accepted_tokens for result in results)

    check()
    assert accepted > 10
