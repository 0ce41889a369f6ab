"""Random tiny heads that guess several places at once, and oracles in PyTorch.

DFlash heads and Medusa heads, in the formats in which they are published. The oracles have no
cache, no rows and no slots.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from tests.drafters.coached import TARGET
from tests.drafters.eagle_heads import GUESSED, LLAMA, WIDE, layer_shapes, normed
from tests.tiny import VOCAB_SIZE, oracle, temporary_directory

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]
BLOCK, MASK = 6, 3
QWEN3 = LLAMA | {"head_dim": 16, "num_hidden_layers": 2, "model_type": "qwen3", "rope_theta": 1e4}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "dflash": {
        **QWEN3,
        "architectures": ["DFlashDraftModel"],
        "block_size": BLOCK,
        "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [0, 1]},
        "num_target_layers": 3,
    },
    # Layers of both kinds, and factors.
    "dflash-sliding": {
        **QWEN3,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 12,
        "use_sliding_window": True,
        "dflash_config": {
            "block_size": BLOCK,
            "mask_token_id": MASK,
            "target_layer_ids": [1],
            "input_embedding_scale": 1.5,
            "output_multiplier": 0.7,
            "final_logit_softcapping": 3.0,
        },
    },
    # As published, its configuration counts wrong.
    "medusa": {"medusa_num_heads": 2, "medusa_num_layers": 1},
    "medusa-vllm": {"model_type": "medusa", "truncated_vocab_size": len(GUESSED)},
    "medusa-one-output": {"model_type": "medusa", "original_lm_head": True},
}


def dflash_shapes(fused: int) -> Shapes:
    shapes: Shapes = {
        "fc.weight": (WIDE, fused * WIDE),
        "hidden_norm.weight": (WIDE,),
        "norm.weight": (WIDE,),
    }
    for number in range(QWEN3["num_hidden_layers"]):
        name = f"layers.{number}"
        shapes |= layer_shapes(name, QWEN3, WIDE) | {f"{name}.input_layernorm.weight": (WIDE,)}
        shapes |= {f"{name}.self_attn.{qk}_norm.weight": (16,) for qk in "qk"}
    return shapes


def vllm_shapes(outputs: Shapes) -> Shapes:
    layers = [f"medusa_heads.blocks.{h}.layers.{n}.weight" for h in range(3) for n in range(2)]
    return dict.fromkeys(layers, (WIDE, WIDE)) | outputs


SHAPES: Mapping[str, Shapes] = {
    "dflash": dflash_shapes(2),
    "dflash-sliding": dflash_shapes(1),
    "medusa": {
        **{f"{h}.0.linear.weight": (WIDE, WIDE) for h in range(4)},
        **{f"{h}.0.linear.bias": (WIDE,) for h in range(4)},
        **{f"{h}.1.weight": (VOCAB_SIZE, WIDE) for h in range(4)},
    },
    "medusa-vllm": vllm_shapes(
        {f"medusa_heads.lm_heads.{h}.weight": (len(GUESSED), WIDE) for h in range(3)}
        | {"token_map": (len(GUESSED),)}
    ),
    "medusa-one-output": vllm_shapes({"lm_heads.0.weight": (VOCAB_SIZE, WIDE)}),
}


@functools.cache
def tensors(name: str) -> dict[str, np.ndarray]:
    """Returns the random tensors of a head."""
    rng, made = np.random.default_rng(len(name)), {}
    for each, shape in SHAPES[name].items():
        noise = rng.normal(size=shape).astype(np.float32)
        made[each] = 1 + 0.2 * noise if "norm" in each else noise * 2 * shape[-1] ** -0.5
    if "token_map" in made:
        made["token_map"] = GUESSED.copy()
    return made


def write_head(
    directory: Path,
    name: str,
    changes: Mapping[str, Any] | None = None,
    kept: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes a head, with keys of its configuration changed, or with other tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIGS[name], **(changes or {})}))
    arrays = {key: np.ascontiguousarray(x) for key, x in (kept or tensors(name)).items()}
    if name == "medusa":
        import torch

        pickled = {key: torch.tensor(value) for key, value in arrays.items()}
        torch.save(pickled, directory / "medusa_lm_head.pt")
    else:
        save_file(arrays, directory / "model.safetensors")
    return directory


@functools.cache
def head_directory(name: str) -> Path:
    return write_head(temporary_directory(f"head-{name}-"), name)


def expected_chances(name: str, text: Sequence[int]) -> list[np.ndarray]:
    """Returns the probabilities float[V] of the tokens for each place after a text."""
    import torch

    with torch.no_grad():
        tokens = torch.tensor([list(text)])
        read = oracle(TARGET).model(tokens, output_hidden_states=True, use_cache=False)
        if name.startswith("dflash"):
            return [x.softmax(-1).numpy() for x in dflash_logits(name, text, read.hidden_states)]
        return [spread(name, x) for x in medusa_logits(name, read.last_hidden_state[0, -2])]


def spread(name: str, logits: "torch.Tensor") -> np.ndarray:
    chances = logits.softmax(-1).numpy()
    if len(chances) == VOCAB_SIZE:
        return chances
    whole = np.zeros(VOCAB_SIZE, np.float32)
    whole[tensors(name)["token_map"]] = chances
    return whole


def medusa_logits(name: str, hidden: "torch.Tensor") -> list["torch.Tensor"]:
    import torch

    held = {key.removeprefix("medusa_heads."): torch.tensor(x) for key, x in tensors(name).items()}
    found = []
    for head in range(4 if name == "medusa" else 3):
        x = hidden
        if name == "medusa":
            x = x + torch.nn.functional.silu(
                held[f"{head}.0.linear.weight"] @ x + held[f"{head}.0.linear.bias"]
            )
            found.append(held[f"{head}.1.weight"] @ x)
            continue
        for layer in range(2):
            x = x + torch.nn.functional.silu(held[f"blocks.{head}.layers.{layer}.weight"] @ x)
        found.append(held.get(f"lm_heads.{head}.weight", held["lm_heads.0.weight"]) @ x)
    return found


def dflash_logits(
    name: str, text: Sequence[int], states: Sequence["torch.Tensor"]
) -> list["torch.Tensor"]:
    import torch
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    config, target = CONFIGS[name], oracle(TARGET)
    settings = config["dflash_config"]
    held = {key: torch.tensor(x) for key, x in tensors(name).items()}
    layers, rotary = dflash_layers(name)
    read = [states[number + 1][0, :-1] for number in settings["target_layer_ids"]]
    context = normed(torch.cat(read, dim=-1) @ held["fc.weight"].T, held["hidden_norm.weight"])
    known, block = len(text) - 1, [text[-1], *[MASK] * (BLOCK - 1)]
    x = target.model.embed_tokens(torch.tensor(block)) * settings.get("input_embedding_scale", 1)
    cos, sin = rotary(x[None], torch.arange(known + BLOCK)[None])
    kinds = config.get("layer_types", ["full_attention"] * len(layers))
    for layer, kind in zip(layers, kinds, strict=True):
        mix, normal = layer.self_attn, layer.input_layernorm(x)
        both = torch.cat([context, normal])
        q = mix.q_norm(mix.q_proj(normal).view(BLOCK, -1, 16)).transpose(0, 1)[None]
        k = mix.k_norm(mix.k_proj(both).view(len(both), -1, 16)).transpose(0, 1)[None]
        v = mix.v_proj(both).view(len(both), -1, 16).transpose(0, 1)[None]
        q, _ = apply_rotary_pos_emb(q, q, cos[:, known:], sin[:, known:])
        k, _ = apply_rotary_pos_emb(k, k, cos, sin)
        row, column = known + torch.arange(BLOCK)[:, None], torch.arange(len(both))[None]
        seen = torch.ones(BLOCK, len(both), dtype=torch.bool)
        if kind == "sliding_attention":
            seen = (column <= row) & (column > row - config["sliding_window"])
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), attn_mask=seen
        )
        x = x + mix.o_proj(mixed[0].transpose(0, 1).reshape(BLOCK, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    logits = target.lm_head(normed(x, held["norm.weight"]))[1:]
    logits = logits * settings.get("output_multiplier", 1)
    if cap := settings.get("final_logit_softcapping"):
        logits = cap * torch.tanh(logits / cap)
    return list(logits)


@functools.cache
def dflash_layers(name: str) -> tuple[list[Any], Any]:
    """Returns Qwen3's layers of `transformers` with a head's tensors, and their rotary angles."""
    import torch
    from transformers import AutoConfig
    from transformers.models.qwen3 import modeling_qwen3

    sizes = {key: value for key, value in QWEN3.items() if key != "model_type"}
    config = AutoConfig.for_model("qwen3", **sizes, attn_implementation="eager")
    made = []
    for number in range(QWEN3["num_hidden_layers"]):
        layer = modeling_qwen3.Qwen3DecoderLayer(config, number).eval()
        prefix = f"layers.{number}."
        held = {
            key.removeprefix(prefix): torch.tensor(x)
            for key, x in tensors(name).items()
            if key.startswith(prefix)
        }
        layer.load_state_dict(held)
        made.append(layer)
    return made, modeling_qwen3.Qwen3RotaryEmbedding(config)
