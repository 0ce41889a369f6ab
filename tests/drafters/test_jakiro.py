"""Drafts of a Jakiro head equal those of an implementation in PyTorch, and change no text."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.drafters import Jakiro
from emsjax.drafters.beam import choices_of
from emsjax.drafters.eagle import Parts
from emsjax.engine.draft import Draft
from emsjax.models.jakiro_head import JakiroConfig, JakiroHead
from tests.drafters.test_own_layers import SLOTS, busy_state
from tests.drafters.trees import Paths, equal_paths, paths_of
from tests.engine.setup import jobs, make_engine, oracle_model, own_layers, run_all, tiny_model
from tests.tiny import oracle

if TYPE_CHECKING:
    import torch


def jakiro_head(model: Any, scale: float = 1.0) -> JakiroHead:
    """Returns a random head whose every part matters."""
    config, width = model.config, model.embedder.tokens.shape[1]
    heads = config.num_heads, config.num_kv_heads, config.head_dim
    head = JakiroHead(JakiroConfig(width, 24, *heads, config.vocab_size), rngs=nnx.Rngs(4))
    head.fc.bias[...] = jnp.linspace(-scale, scale, width)
    head.first.attention.out.kernel[...] *= 10
    head.first.mlp_norm.scale[...] = jnp.linspace(0.5, 1.5, width)
    for expert in head.first.mlp.experts:
        expert.down.kernel[...] *= 30
    return head


def jakiro(model: Any, head: JakiroHead | None = None) -> Jakiro:
    head_def, params = nnx.split(head or jakiro_head(model))
    alike, target_def = own_layers(model), nnx.graphdef(model)
    shared, target = alike.weights.shared, alike.weights.target
    return Jakiro(
        name="random",
        weights=Parts(params, model.embedder.tokens[...], shared.token_ids, target, shared),
        merge=lambda head, target: (nnx.merge(head_def, head), nnx.merge(target_def, target)),
        vocab_size=model.vocab_size,
        hidden_size=2 * model.embedder.tokens.shape[1],
        hidden_layers=(),
        read_bytes=1,
        output_bytes=0,
        draft_length=5,
        narrowest=4,
    )


def drafted(drafter: Jakiro, state: Any, length: int) -> Draft:
    @functools.partial(jax.jit, static_argnums=2)
    def propose(state: Any, weights: Any, length: int) -> Draft:
        return drafter.propose(state, weights, lambda _: jnp.full((), length, jnp.int32))[0]

    return propose(state, drafter.weights, length)


def feed_forward(x: "torch.Tensor", expert: Any) -> "torch.Tensor":
    import torch

    up, down = (torch.tensor(np.asarray(part.kernel[...])) for part in (expert.up, expert.down))
    gate, more = (x @ up.T).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * more) @ down.T


def run_head(head: JakiroHead, states: "torch.Tensor", embedded: "torch.Tensor") -> Any:
    """Returns the states of both guesses of all rows, after the code of Jakiro's authors."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    def tensor(param: Any) -> torch.Tensor:
        return torch.tensor(np.asarray(param[...]))

    sizes, first = head.config.layers, head.first
    config = LlamaConfig(
        hidden_size=sizes.hidden_size,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        attn_implementation="eager",
    )
    attention = modeling_llama.LlamaAttention(config, 0)
    edges = [sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim]
    parts = tensor(first.attention.qkv.kernel).split([*edges, edges[1]])
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    kernels = zip(names, (*parts, tensor(first.attention.out.kernel)), strict=True)
    attention.load_state_dict({f"{name}.weight": kernel for name, kernel in kernels})
    count = states.shape[0]
    angles = modeling_llama.LlamaRotaryEmbedding(config)(states[None], torch.arange(count)[None])
    x = torch.cat([embedded, states], dim=-1) @ tensor(head.fc.kernel).T + tensor(head.fc.bias)
    mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
    x = x + attention(hidden_states=x[None], position_embeddings=angles, attention_mask=mask)[0][0]
    scale = tensor(first.mlp_norm.scale)
    normal = x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * scale
    one, other = (feed_forward(normal, expert) for expert in first.mlp.experts)
    logits = normal @ tensor(first.mlp.gate.kernel).T
    w, v = logits[:, :2].softmax(-1), logits[:, 2:].softmax(-1)
    larger = (v[:, :1] > v[:, 1:]).float() * 2 - 1
    contrast = larger * (v[:, :1] * one - v[:, 1:] * other)
    return x + w[:, :1] * one + w[:, 1:] * other, x + contrast


def expected_tree(
    name: str, text: Sequence[int], drafter: Jakiro, head: JakiroHead, length: int, width: int
) -> Paths:
    """Returns all guesses of a beam; the head reads the whole text for each row."""
    import torch

    target, ids = oracle(name), torch.tensor(np.asarray(drafter.weights.token_ids))
    embed, found = target.model.embed_tokens.weight, {}
    with torch.no_grad():
        read = target.model(torch.tensor([list(text)]), use_cache=False)
        paths: list[Any] = [((), 1.0, read.last_hidden_state[0, :-1], None)]
        for place in range(length):
            grown, passes = [], place == 0 or place + 1 < length
            for path, share, states, contrast in paths:
                now, after, longer = contrast, None, states
                if passes:
                    embedded = embed[torch.tensor([*text[1:], *path])]
                    now, after = (each[-1:] for each in run_head(head, states, embedded))
                    longer = torch.cat([states, now])
                best = target.lm_head(now[0])[ids].softmax(-1).topk(choices_of(width))
                for chance, index in zip(best.values.tolist(), best.indices, strict=True):
                    grown.append(((*path, int(ids[index])), share * chance, longer, after))
            found |= {path: share for path, share, *_ in grown}
            paths = sorted(grown, key=lambda each: -each[1])[:width]
    return found


@functools.cache
def decoding() -> tuple[JakiroHead, Jakiro, Any]:
    """Returns a head, its drafter, and slots that decode with it."""
    model = oracle_model("llama3")
    head = jakiro_head(model)
    drafter = jakiro(model, head)
    return head, drafter, busy_state(make_engine(model, drafter, SLOTS), steps=5)


@pytest.mark.parametrize(("length", "width"), [(1, 1), (2, 1), (4, 1), (3, 2)])
def test_drafts_equal_those_of_pytorch(length: int, width: int):
    pytest.importorskip("torch")
    head, drafter, state = decoding()
    if width > 1:  # with room for nearly all guesses
        drafter = dataclasses.replace(drafter, beam_rows=width * SLOTS, draft_length=9)
    draft, seen = jax.device_get(drafted(drafter, state, length)), set()
    for slot in range(SLOTS):
        text = np.asarray(state.tokens[slot, : int(state.lens[slot])]).tolist()
        expected = expected_tree("llama3", text, drafter, head, length, width)
        if width == 1:
            longest = list(max(expected, key=len))
            assert draft.tokens[slot, : draft.lens[slot]].tolist() == longest
        else:
            found = paths_of(draft, slot)
            assert equal_paths(found, expected)
            assert max(map(len, found)) == length
        seen |= {path[-1] for path in expected}
    assert len(seen) > min(length, 3), "drafts of one token show little"


def test_a_head_that_computes_nothing_but_nan_changes_no_text():
    model, todo = tiny_model("llama3"), jobs(8, longest=60)
    expected = [r.token_ids for r in run_all(make_engine(model, "none", 1), todo)]
    drafter = jakiro(model, jakiro_head(model, np.nan))
    found = run_all(make_engine(model, drafter, SLOTS), todo)
    assert [r.token_ids for r in found] == expected
