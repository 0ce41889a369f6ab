"""Which tensors of a checkpoint make up an EAGLE head."""

from collections.abc import Mapping

from emsjax.loading.eagle_form import Form
from emsjax.loading.head_kind import PREFIXES
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Rule, WeightMap, affine, rule

# A copy of the target's embedding or head, which tokens are frequent, and what is computed anyway.
_SPARE = (r"embed_tokens\.weight", r"t2d", r"d2t", r"verifier_.*", r".*\.rotary_emb\.inv_freq")


def head_weights(form: Form) -> WeightMap:
    """Returns the weight map of a head."""
    config = form.config
    rules = {
        **affine("fc", "fc", bias=config.bias),
        **layer_rules(config.layers, "first", form.layer),
    }
    spare: tuple[str, ...] = _SPARE
    if config.norm_of_all:
        rules["all_norm.scale"] = rule("input_norm.weight")
    for number in range(config.fused if config.norm_of_each else 0):
        rules[f"each_norm.{number}.scale"] = rule(f"fc_norm.{number}.weight")
    if config.fused:
        rules["first.token_norm.scale"] = rule(f"{form.layer}.input_layernorm.weight")
        rules["first.state_norm.scale"] = rule(f"{form.layer}.hidden_norm.weight")
        rules["norm.scale"] = rule("norm.weight")
        rules["head.kernel"] = rule("lm_head.weight")
    else:
        spare += (r"lm_head\.weight",)
    for number in range(1, config.layers.num_layers):
        name = f"layers.{number}"
        rules |= layer_rules(config.layers, f"others.{number - 1}", name)
        rules[f"others.{number - 1}.attention_norm.scale"] = rule(f"{name}.input_layernorm.weight")
    if config.own_embedding:
        rules["tokens"] = rule("embed_tokens.weight")
    return WeightMap(rules, spare, PREFIXES)


def layer_rules(layers: DecoderConfig, ours: str, theirs: str) -> Mapping[str, Rule]:
    """Returns the rules of what all layers of heads have."""
    attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
    qkv = [f"{attention}.{name}_proj" for name in "qkv"]
    inner = [f"{mlp}.{name}_proj" for name in ("gate", "up")]
    rules = {
        **affine(f"{ours}.attention.qkv", *qkv, bias=layers.qkv_bias),
        **affine(f"{ours}.attention.out", f"{attention}.o_proj", bias=layers.out_bias),
        **affine(f"{ours}.mlp.up", *inner, bias=layers.mlp_bias),
        **affine(f"{ours}.mlp.down", f"{mlp}.down_proj", bias=layers.mlp_bias),
        f"{ours}.mlp_norm.scale": rule(f"{theirs}.post_attention_layernorm.weight"),
    }
    if layers.qk_norm:
        rules[f"{ours}.attention.q_norm.scale"] = rule(f"{attention}.q_norm.weight")
        rules[f"{ours}.attention.k_norm.scale"] = rule(f"{attention}.k_norm.weight")
    return rules
