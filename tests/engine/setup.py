"""Engines on tiny models, and the texts of PyTorch `transformers` with the same weights."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import AutoConfig

from emsjax.drafters import (
    Combined,
    DraftModel,
    HiddenTransfer,
    NoDrafter,
    OwnLayers,
    PromptLookup,
    Recurrent,
    SelfWindow,
)
from emsjax.drafters.dflash import DFlash
from emsjax.drafters.dflash import Parts as DFlashParts
from emsjax.drafters.eagle import Eagle
from emsjax.drafters.eagle import Parts as EagleParts
from emsjax.drafters.own_layers import Parts
from emsjax.engine.devices import ONE, Devices
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.job import Finished, Job
from emsjax.engine.ladder import Rung
from emsjax.engine.model import View
from emsjax.engine.policy import POLICIES
from emsjax.engine.step_costs import StepCosts
from emsjax.loading.hf.defaults import type_of_transformers
from emsjax.loading.load import load_model
from emsjax.models.decoder import DecoderLM
from emsjax.models.dflash_head import DFlashConfig, DFlashHead
from emsjax.models.eagle_head import EagleConfig, EagleHead
from emsjax.models.hidden_transfer import HiddenTransfer as TransferMaps
from emsjax.models.hidden_transfer import TransferConfig
from emsjax.models.mtp_head import MtpHead
from emsjax.models.recurrent_draft import RecurrentConfig, RecurrentDraft, Shared
from emsjax.models.registry import FAMILIES
from emsjax.models.shared_rows import DividedRows, table_of
from emsjax.models.state_map import StateMap, StateMapConfig
from emsjax.pallas_kernels.scoped_vmem import compiler_options
from tests.ladders import short_ladder
from tests.tiny import TINY, VOCAB_SIZE, checkpoint, oracle

EOS = 2
# Hides most of the longer texts.
SHORT_VIEW = View(sink_tokens=2, window=20)


@functools.cache
def oracle_model(name: str, devices: Devices = ONE) -> Any:
    """Returns a tiny model with the oracle's weights."""
    return load_model(checkpoint(name), devices=devices).model


@functools.cache
def tiny_model(name: str) -> Any:
    """Returns a tiny model with weights from a JAX seed, without PyTorch."""
    model_type, settings = TINY[name]
    known = type_of_transformers(model_type)
    config = AutoConfig.for_model(known, **settings, vocab_size=VOCAB_SIZE)
    return DecoderLM(FAMILIES[model_type].config(config.to_dict()), rngs=nnx.Rngs(0))


def make_engine(
    model: Any,
    drafter: str | Drafter,
    num_slots: int,
    *,
    capacity: int = 512,
    exact: bool = False,
    costs: float | None = None,
    method: str = "ems",
    trace: bool = False,
    make: Callable[..., tuple[Rung, ...]] = short_ladder,
    devices: Devices = ONE,
    kind: Callable[..., Engine] = Engine,
) -> Engine:
    """Makes an engine with a named drafter or with the test's own; `make` makes its ladder."""
    chosen = make_drafter(model, drafter) if isinstance(drafter, str) else drafter
    ladder = make(num_slots, chosen.draft_length, exact=exact, prefill_chunk=64)
    return kind(
        model,
        chosen,
        ladder,
        num_slots=num_slots,
        capacity=capacity,
        costs=costs_of(ladder, costs),
        policy=POLICIES[method],
        trace=trace,
        devices=devices,
        compiler_options=compiler_options(),
    )


def costs_of(ladder: tuple[Rung, ...], draft: float | None) -> StepCosts | None:
    """Returns costs of 20 for any step, 1 for each row and `draft` for each draft token."""
    if draft is None:
        return None
    rungs = np.asarray([20.0 + rung.capacity for rung in ladder], np.float32)
    return StepCosts(rungs, np.full(len(ladder), 0.001, np.float32), np.float32(draft))


def make_drafter(model: Any, name: str) -> Drafter:
    """Makes a drafter for a tiny model. Those that compute are near-perfect or untrained."""
    lookup = PromptLookup(7, 3, 1)
    if name == "none":
        return NoDrafter()
    if name == "prompt-lookup":
        return lookup
    if name == "combined":
        return Combined(lookup, recurrent(model))
    if name == "tree":
        # Room for two branches in each of eight slots.
        return Combined(
            replace(lookup, matches=4), replace(recurrent(model), beam_rows=16), tree=True
        )
    if name == "combined-own-layers":
        return Combined(lookup, own_layers(model))
    kinds = {"itself": itself, "draft-model": another, "alike": alike, "recurrent": recurrent}
    kinds |= {"own-layers": own_layers, "self-window": self_window, "eagle": eagle}
    kinds |= {"hidden-transfer": hidden_transfer, "dflash": dflash}
    return kinds[name](model)


def itself(model: Any) -> DraftModel:
    """Makes the target its own draft model: all it drafts is accepted."""
    graphdef, weights = nnx.split(model)
    merge = functools.partial(nnx.merge, graphdef)
    return DraftModel("itself", weights, merge, model.vocab_size, 4, prefill_chunk=32)


def alike(model: Any) -> DraftModel:
    """Makes a draft model that is right most of the time."""
    return another(model, noise=0.03)


def another(model: Any, noise: float = 0.3) -> DraftModel:
    """Makes a draft model that is right now and then: the target with its weights disturbed."""
    graphdef, weights = nnx.split(model)
    keys = nnx.Rngs(7).params
    disturbed = jax.tree.map(
        lambda x: x + noise * x.std() * jax.random.normal(keys(), x.shape, x.dtype), weights
    )
    merge = functools.partial(nnx.merge, graphdef)
    return DraftModel("disturbed", disturbed, merge, model.vocab_size, 4, prefill_chunk=32)


def recurrent(model: Any) -> Recurrent:
    """Makes a recurrent draft with random weights that can guess every other token."""
    config = RecurrentConfig(model.embedder.tokens.shape[1], 32, 1)
    graphdef, params = nnx.split(RecurrentDraft(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    ids = jnp.arange(0, model.vocab_size, 2, dtype=jnp.int32)
    shared = shared_with(model, ids, model.embedder.tokens)
    return Recurrent(
        "random",
        (params, shared),
        functools.partial(nnx.merge, graphdef),
        model.vocab_size,
        config.hidden_size,
        5,
    )


def own_layers(model: Any, state_map: Any = None, first_layer: int = 1) -> OwnLayers:
    """Makes a draft of the target's layers from `first_layer` on; its map is random by default."""
    vocab_size, width = model.vocab_size, model.embedder.tokens.shape[1]
    sizes = model.hidden_size, width, vocab_size, model.num_layers, first_layer
    config = StateMapConfig(*sizes, width=0)
    split_map = nnx.split(state_map or StateMap(config, rngs=nnx.Rngs(3)))
    params = jax.tree.map(lambda x: x.astype(model.dtype), split_map[1])
    ids = jnp.arange(0, vocab_size, 2, dtype=jnp.int32)
    shared = shared_with(
        model, ids, model.embedder.tokens if model.head is None else model.head.kernel
    )
    graphdef, weights = nnx.split(model)
    return OwnLayers(
        "random",
        Parts(params, shared, weights),
        lambda state_map, target: (nnx.merge(split_map[0], state_map), nnx.merge(graphdef, target)),
        vocab_size,
        model.hidden_size,
        first_layer,
        read_bytes=1,
        draft_length=5,
        narrowest=4,
    )


def hidden_transfer(
    model: Any, first_layer: int = 1, bias: float | None = None, beam_rows: int = 1
) -> HiddenTransfer:
    """Makes a draft of random maps, or of maps to `bias` alone."""
    width, (vocab_size, embedded), places = model.hidden_size, model.embedder.tokens.shape, 4
    sizes = width, embedded, vocab_size, model.num_layers, first_layer, places
    maps = TransferMaps(TransferConfig(*sizes), rngs=nnx.Rngs(5))
    if bias is None:
        maps.linear.bias[...] = jnp.linspace(-1.0, 1.0, places * width)
    else:
        maps.linear.bias[...] = jnp.full(places * width, bias)
    maps_def, params = nnx.split(maps)
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    alike, target_def = own_layers(model, first_layer=first_layer), nnx.graphdef(model)
    kept = {name: getattr(alike, name) for name in ("name", "vocab_size", "hidden_size")}
    return HiddenTransfer(
        **kept,
        weights=alike.weights._replace(state_map=params),
        merge=lambda maps, target: (nnx.merge(maps_def, maps), nnx.merge(target_def, target)),
        first_layer=first_layer,
        read_bytes=1,
        draft_length=7,
        narrowest=4,
        places=places,
        beam_rows=beam_rows,
    )


def eagle(model: Any) -> Eagle:
    """Makes an EAGLE-3 head with random weights that can guess every other token."""
    sizes = model.hidden_size, (model.vocab_size + 1) // 2
    config = EagleConfig(replace(model.config, num_layers=1), 3, *sizes)
    graphdef, params = nnx.split(EagleHead(config, rngs=nnx.Rngs(0), dtype=model.dtype))
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    ids = jnp.arange(0, model.vocab_size, 2, dtype=jnp.int32)
    embedding = shared_with(model, ids, model.embedder.tokens).embedding
    return Eagle(
        "random",
        EagleParts(params, embedding, ids, {}),
        lambda head, _: (nnx.merge(graphdef, head), None),
        model.vocab_size,
        model.hidden_size,
        hidden_layers=(1, model.num_layers // 2, model.num_layers - 1),
        read_bytes=1,
        output_bytes=0,
        draft_length=5,
    )


def mtp(model: Any) -> Eagle:
    """Makes an MTP module with random weights, which guesses with the model's output projection."""
    sizes = replace(model.config, num_layers=1, windows=())
    graphdef, params = nnx.split(MtpHead(sizes, rngs=nnx.Rngs(4), dtype=model.dtype))
    target_def, target = nnx.split(model)
    return Eagle(
        "random",
        EagleParts(params, model.embedding_table, None, target),
        lambda head, target: (nnx.merge(graphdef, head), nnx.merge(target_def, target)),
        model.vocab_size,
        model.hidden_size,
        hidden_layers=(model.num_layers,),
        read_bytes=1,
        output_bytes=0,
        draft_length=5,
    )


def dflash(model: Any, beam_rows: int = 1) -> DFlash:
    """Makes a DFlash head of one layer with random weights."""
    config = DFlashConfig(replace(model.config, num_layers=1), 2, (None,), (False,))
    graphdef, params = nnx.split(DFlashHead(config, rngs=nnx.Rngs(6), dtype=model.dtype))
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    output = model.embedder.tokens if model.head is None else model.head.kernel
    shared = [
        table_of(param.get_value(), divided=model.embedder.divided)
        for param in (model.embedder.tokens, output)
    ]
    return DFlash(
        "random",
        DFlashParts(params, *shared),
        functools.partial(nnx.merge, graphdef),
        model.vocab_size,
        hidden_layers=(1, 2),
        block=5,
        mask_token=3,
        read_bytes=1,
        narrowest=4,
        beam_rows=beam_rows,
    )


def self_window(model: Any, view: View = SHORT_VIEW) -> SelfWindow:
    """Makes the target draft for itself, on a part of its cache."""
    graphdef, weights = nnx.split(model)
    merge = functools.partial(nnx.merge, graphdef)
    return SelfWindow(weights, merge, read_bytes=1, view=view, draft_length=5, narrowest=4)


def shared_with(model: Any, ids: jax.Array, projection: nnx.Param) -> Shared:
    """Returns what a draft for some tokens shares with a model, shapes if the model is shapes."""
    embedding, rows = (param.get_value() for param in (model.embedder.tokens, projection))
    if isinstance(rows, jax.ShapeDtypeStruct):
        head: Any = jax.ShapeDtypeStruct((len(ids), *rows.shape[1:]), rows.dtype)
    else:
        head = jnp.asarray(np.asarray(rows)[np.asarray(ids)])
    return Shared(DividedRows(embedding) if model.embedder.divided else embedding, head, ids)


def jobs(count: int = 20, longest: int = 200, stop_ids: tuple[int, ...] = (EOS,)) -> list[Job]:
    """Makes jobs with repetitive prompts of 1 to `longest` tokens, to generate 1 to 64 tokens."""
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
    """Generates greedy text with the oracle called `name` from a single prompt."""
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


def check_greedy(model: Any, results: list[Finished]) -> None:
    """Checks that texts are the greedy ones of a model of `transformers`.

    A pass over a whole text shows what `generate` would write, in a tenth of the time.
    """
    import torch

    for result in results:
        job, text = result.job, list(result.token_ids)
        with torch.no_grad():
            logits = model(torch.tensor([[*job.prompt, *text]])).logits[0]
        likeliest = logits[len(job.prompt) - 1 : -1].argmax(-1).tolist()
        assert text == likeliest, f"prompt {job.key} of {len(job.prompt)} tokens"
        assert EOS not in text[:-1]
        assert text[-1] == EOS or len(text) == job.max_tokens


def run_all(engine: Engine, todo: list[Job]) -> list[Finished]:
    """Returns the results in the order of the jobs, and checks that each job has exactly one."""
    results = {finished.job.key: finished for finished in engine.run(todo)}
    assert sorted(results) == [job.key for job in todo]
    return [results[job.key] for job in todo]
