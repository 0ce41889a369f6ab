"""Random tiny EAGLE heads in the formats in which they are published, and an oracle in PyTorch.

MiMo's MTP module is one of them, because it drafts like an EAGLE-1 head.

The oracle follows the published algorithms with layers of `transformers`. It reads the whole text
for every draft, so it has no cache, no rows and no slots.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from tests.tiny import VOCAB_SIZE, oracle, temporary_directory

if TYPE_CHECKING:
    import torch

TARGET = "llama"  # three layers, 32 wide
WIDE = 32
# The tokens that the heads guess, of which there are fewer than the target has.
GUESSED = np.sort(np.random.default_rng(1).permutation(VOCAB_SIZE)[:60])

LLAMA = {
    "hidden_size": WIDE,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "vocab_size": VOCAB_SIZE,
    "hidden_act": "silu",
}
MODULE = "model.mtp_layers.0"
MODULE_NORMS = ("input", "token", "hidden", "final")
VERIFIER = {"name_or_path": "tiny", "architectures": ["LlamaForCausalLM"]}


class Form(NamedTuple):
    """A head as its format defines it.

    Attributes:
      config: its `config.json`.
      sizes: the sizes of its layers.
      shapes: its tensors, by the names they are published under.
      layer: its name for the first layer.
      reads: the target's layers whose inputs it reads; None for the final states.
      model_type: the kind of its layers in `transformers`.
      residual_is_normed: whether the first layer adds to normalised states.
      feeds_normed: whether the next row gets the normalised state.
      mtp: whether it is an MTP module.
    """

    config: Mapping[str, Any]
    sizes: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    layer: str = "layers.0"
    reads: tuple[int, ...] | None = None
    model_type: str = "llama"
    residual_is_normed: bool = False
    feeds_normed: bool = False
    mtp: bool = False


def layer_shapes(name: str, sizes: Mapping[str, Any], wide: int) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a Llama layer whose attention reads rows `wide` wide."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    head = sizes.get("head_dim", width // heads)
    shapes = {
        "self_attn.q_proj": (heads * head, wide),
        "self_attn.k_proj": (kv_heads * head, wide),
        "self_attn.v_proj": (kv_heads * head, wide),
        "self_attn.o_proj": (width, heads * head),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "post_attention_layernorm": (width,),
    }
    return {f"{name}.{each}.weight": shape for each, shape in shapes.items()}


def eagle3_shapes(layer: str, sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width = sizes["hidden_size"]
    return {
        **layer_shapes(layer, sizes, 2 * width),
        f"{layer}.input_layernorm.weight": (width,),
        f"{layer}.hidden_norm.weight": (width,),
        "fc.weight": (width, 3 * WIDE),
        "norm.weight": (width,),
        "lm_head.weight": (len(GUESSED), width),
        "d2t": (len(GUESSED),),
        "t2d": (VOCAB_SIZE,),
    }


def eagle3() -> Form:
    """EAGLE's own repository: a PyTorch pickle whose configuration says nothing of the layers."""
    config = {**LLAMA, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config["draft_vocab_size"] = len(GUESSED)
    return Form(config, LLAMA, eagle3_shapes("midlayer", LLAMA), "midlayer", reads=(2, 1, 0))


def specforge() -> Form:
    """SpecForge: EAGLE-3.1, narrower than the target, with an embedding of its own."""
    sizes = LLAMA | {"hidden_size": 24, "head_dim": 12, "rope_theta": 500.0}
    config = {
        **sizes,
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "draft_vocab_size": len(GUESSED),
        "target_hidden_size": WIDE,
        "fc_norm": True,
        "norm_output": True,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 0]},
        "rope_scaling": None,
    }
    shapes = eagle3_shapes("midlayer", sizes) | {"embed_tokens.weight": (VOCAB_SIZE, 24)}
    shapes |= {f"fc_norm.{n}.weight": (WIDE,) for n in range(3)}
    return Form(config, sizes, shapes, "midlayer", reads=(1, 2, 1), feeds_normed=True)


def speculators() -> Form:
    """The format of speculators: a nested configuration, two layers of Qwen3's kind."""
    sizes = LLAMA | {"num_hidden_layers": 2, "head_dim": 16}
    config = {
        "speculators_model_type": "eagle3",
        "architectures": ["Eagle3Speculator"],
        "transformer_layer_config": {**sizes, "model_type": "qwen3", "rope_theta": 10000.0},
        "draft_vocab_size": len(GUESSED),
        "norm_before_residual": True,
        "norm_before_fc": True,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 0],
        "speculators_config": {"algorithm": "eagle3", "verifier": VERIFIER},
    }
    shapes = eagle3_shapes("layers.0", sizes) | layer_shapes("layers.1", sizes, WIDE)
    shapes |= {"layers.1.input_layernorm.weight": (WIDE,), "input_norm.weight": (3 * WIDE,)}
    heads = [f"layers.{n}.self_attn.{qk}_norm.weight" for n in range(2) for qk in "qk"]
    shapes |= dict.fromkeys(heads, (16,)) | {"embed_tokens.weight": (VOCAB_SIZE, WIDE)}
    return Form(config, sizes, shapes, reads=(1, 2, 0), model_type="qwen3", residual_is_normed=True)


def eagle1() -> Form:
    """EAGLE-1: it reads final states and guesses with the target's output projection."""
    config = {**LLAMA, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    shapes = layer_shapes("layers.0", LLAMA, WIDE) | {
        "fc.weight": (WIDE, 2 * WIDE),
        "fc.bias": (WIDE,),
        "embed_tokens.weight": (VOCAB_SIZE, WIDE),
    }
    return Form(config, LLAMA, shapes)


def mtp() -> Form:
    """MiMo's MTP module in a directory of its own, with the target's embedding."""
    sizes = LLAMA | {"head_dim": 16, "intermediate_size": 48, "rope_theta": 500.0}
    config = {
        **sizes,
        "architectures": ["MiMoForCausalLM"],
        "model_type": "mimo",
        "attention_bias": True,
        "num_nextn_predict_layers": 1,
        "use_sliding_window": False,
    }
    shapes = layer_shapes(MODULE, sizes, WIDE) | {
        f"{MODULE}.input_proj.weight": (WIDE, 2 * WIDE),
        "model.embed_tokens.weight": (VOCAB_SIZE, WIDE),
    }
    shapes |= {f"{MODULE}.{name}_layernorm.weight": (WIDE,) for name in MODULE_NORMS}
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = f"{MODULE}.self_attn.{name}"
        shapes[f"{projection}.bias"] = shapes[f"{projection}.weight"][:1]
    return Form(config, sizes, shapes, MODULE, model_type="qwen2", mtp=True)


FORMS = {form.__name__: form for form in (eagle3, specforge, speculators, eagle1, mtp)}


@functools.cache
def tensors(name: str) -> dict[str, np.ndarray]:
    """Returns the random tensors of a head."""
    rng, made = np.random.default_rng(len(name)), {}
    for each, shape in FORMS[name]().shapes.items():
        noise = rng.normal(size=shape).astype(np.float32)
        made[each] = 1 + 0.2 * noise if "norm" in each else noise * 1.5 * shape[-1] ** -0.5
    if "d2t" in made:
        made["d2t"] = GUESSED - np.arange(len(GUESSED))
        made["t2d"] = np.isin(np.arange(VOCAB_SIZE), GUESSED)
    for each in ("embed_tokens.weight", "model.embed_tokens.weight"):
        if each in made and made[each].shape[1] == WIDE:  # a copy
            made[each] = oracle(TARGET).model.embed_tokens.weight.detach().numpy()
    return made


def write_head(
    directory: Path,
    name: str,
    changes: Mapping[str, Any] | None = None,
    kept: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes a head, with keys of its configuration changed, or with other tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {**FORMS[name]().config, **(changes or {})}
    (directory / "config.json").write_text(json.dumps(config))
    arrays = {key: np.ascontiguousarray(x) for key, x in (kept or tensors(name)).items()}
    if name == "eagle3":
        import torch

        pickled = {key: torch.tensor(value) for key, value in arrays.items()}
        torch.save(pickled, directory / "pytorch_model.bin")
    else:
        save_file(arrays, directory / "model.safetensors")
    return directory


@functools.cache
def head_directory(name: str) -> Path:
    return write_head(temporary_directory(f"head-{name}-"), name)


def expected_drafts(name: str, text: Sequence[int], length: int) -> list[int]:
    """Returns what the head drafts after a text, by the published algorithm in PyTorch."""
    return list(max(expected_tree(name, text, length, 1, 1), key=len))


def expected_tree(
    name: str, text: Sequence[int], length: int, width: int, choices: int
) -> dict[tuple[int, ...], float]:
    """Returns all guesses of a beam, as the tokens that lead to them, with their shares.

    EAGLE-2 (arXiv 2406.16858) grows its trees so, and verifies the guesses with the largest shares.
    """
    import torch

    found: dict[tuple[int, ...], float] = {}
    with torch.no_grad():
        paths = [((), 1.0, read_states(name, text))]
        for _ in range(length):
            grown = []
            for path, share, states in paths:
                likely, ids, state = guess_next(name, states, [*text[1:], *path])
                best = likely.topk(choices)
                longer = torch.cat([states, state])
                for chance, place in zip(best.values.tolist(), best.indices, strict=True):
                    grown.append(((*path, int(ids[place])), share * chance, longer))
            found |= {path: share for path, share, _ in grown}
            paths = sorted(grown, key=lambda each: -each[1])[:width]
    return found


def read_states(name: str, text: Sequence[int]) -> "torch.Tensor":
    """Returns what the head reads of the target, without the newest token."""
    import torch

    form = FORMS[name]()
    model = oracle(TARGET).model
    read = model(torch.tensor([list(text)]), output_hidden_states=True, use_cache=False)
    if form.mtp:
        # `transformers` hands the last layer's output out after the final norm only.
        inner = read.hidden_states[-2]
        angles = model.rotary_emb(inner, torch.arange(len(text))[None])
        return causal(model.layers[-1], inner[0], angles)[:-1]
    if form.reads is None:
        return read.last_hidden_state[0, :-1]
    inner = [read.hidden_states[layer][0, :-1] for layer in form.reads]
    return fused(form, torch_tensors(name), inner)


def guess_next(
    name: str, states: "torch.Tensor", following: Sequence[int]
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Returns the probabilities of the tokens that the head knows, these tokens, and its state."""
    import torch

    form, parts, target = FORMS[name](), torch_tensors(name), oracle(TARGET)
    embedding = parts.get("embed_tokens.weight", target.model.embed_tokens.weight)
    run = run_module if form.mtp else run_layers
    out = run(name, states, embedding[torch.tensor(list(following))])[-1:]
    if form.reads is None:
        return target.lm_head(out)[0].softmax(-1), torch.arange(VOCAB_SIZE), out
    normal = normed(out, parts["norm.weight"])
    likely = (normal @ parts["lm_head.weight"].T)[0].softmax(-1)
    ids = torch.arange(len(likely)) + parts["d2t"]
    return likely, ids, normal if form.feeds_normed else out


@functools.cache
def torch_tensors(name: str) -> dict[str, "torch.Tensor"]:
    import torch

    return {key: torch.tensor(value) for key, value in tensors(name).items()}


def normed(x: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def fused(
    form: Form, parts: Mapping[str, "torch.Tensor"], inner: Sequence["torch.Tensor"]
) -> "torch.Tensor":
    import torch

    if form.config.get("fc_norm"):
        inner = [normed(x, parts[f"fc_norm.{n}.weight"]) for n, x in enumerate(inner)]
    joined = torch.cat(list(inner), dim=-1)
    if form.config.get("norm_before_fc"):
        joined = normed(joined, parts["input_norm.weight"])
    return joined @ parts["fc.weight"].T


@functools.cache
def layers_of(name: str) -> tuple[list[Any], Any]:
    """Returns the layers of `transformers` with a head's tensors, and their rotary embedding."""
    import torch
    from transformers import AutoConfig
    from transformers.models.llama import modeling_llama
    from transformers.models.qwen2 import modeling_qwen2
    from transformers.models.qwen3 import modeling_qwen3

    form = FORMS[name]()
    config = AutoConfig.for_model(form.model_type, **form.sizes, attn_implementation="eager")
    modules = {"llama": modeling_llama, "qwen2": modeling_qwen2, "qwen3": modeling_qwen3}
    module = modules[form.model_type]
    kind = form.model_type.capitalize()
    rotary = getattr(module, f"{kind}RotaryEmbedding")(config)
    made = []
    for number in range(form.sizes["num_hidden_layers"]):
        layer = getattr(module, f"{kind}DecoderLayer")(config, number).eval()
        for each in ("q_proj", "k_proj", "v_proj"):
            weight = torch_tensors(name)[f"{form.layer}.self_attn.{each}.weight"]
            if number == 0 and not form.mtp:
                linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                setattr(layer.self_attn, each, linear)
        prefix = form.layer if number == 0 else f"layers.{number}"
        held = {
            key.removeprefix(f"{prefix}."): value
            for key, value in torch_tensors(name).items()
            if key.startswith(f"{prefix}.") and "hidden_norm" not in key
        }
        missing, surplus = layer.load_state_dict(held, strict=False)
        fronts = {f"{each}_layernorm.weight" for each in MODULE_NORMS} | {"input_proj.weight"}
        assert set(surplus) <= (fronts if form.mtp else set())
        assert set(missing) <= {"input_layernorm.weight"}
        made.append(layer)
    return made, rotary


def run_layers(name: str, states: "torch.Tensor", embedded: "torch.Tensor") -> "torch.Tensor":
    """Runs all rows through the head's layers."""
    import torch

    form, parts, (layers, rotary) = FORMS[name](), torch_tensors(name), layers_of(name)
    count = states.shape[0]
    positions = torch.arange(count)[None]
    mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
    angles = rotary(states[None], positions)
    first = layers[0]
    if form.reads is None:
        joined = torch.cat([embedded, states], dim=-1)
        states = read = joined @ parts["fc.weight"].T + parts["fc.bias"]
    else:
        normal = normed(states, parts[f"{form.layer}.hidden_norm.weight"])
        read = torch.cat([first.input_layernorm(embedded), normal], dim=-1)
        states = normal if form.residual_is_normed else states
    options = {"attention_mask": mask, "position_embeddings": angles, "position_ids": positions}
    x = states + first.self_attn(hidden_states=read[None], **options)[0][0]
    x = (x + first.mlp(first.post_attention_layernorm(x)))[None]
    for layer in layers[1:]:
        x = layer(x, **options)
        x = x if isinstance(x, torch.Tensor) else x[0]
    return x[0]


def run_module(name: str, states: "torch.Tensor", embedded: "torch.Tensor") -> "torch.Tensor":
    """Runs all rows through an MTP module as vLLM does."""
    import torch

    parts, ((layer,), rotary) = torch_tensors(name), layers_of(name)
    # The first row does not see its token.
    embedded = torch.cat([torch.zeros_like(embedded[:1]), embedded[1:]])
    state = normed(states, parts[f"{MODULE}.hidden_layernorm.weight"])
    token = normed(embedded, parts[f"{MODULE}.token_layernorm.weight"])
    x = torch.cat([state, token], dim=-1) @ parts[f"{MODULE}.input_proj.weight"].T
    x = causal(layer, x, rotary(x[None], torch.arange(len(x))[None]))
    return normed(x, parts[f"{MODULE}.final_layernorm.weight"])


def causal(layer: Any, x: "torch.Tensor", angles: Any) -> "torch.Tensor":
    """Runs all rows of a text through a layer of `transformers`."""
    import torch

    mask = torch.full((len(x), len(x)), -torch.inf).triu(1)[None, None]
    x = layer(x[None], attention_mask=mask, position_embeddings=angles)
    return (x if isinstance(x, torch.Tensor) else x[0])[0]
