"""The names of experts in checkpoints: a tensor for each expert, or one for all of a layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Rule, WeightMap, rule
from emsjax.models.llama import llama_weights

# As `transformers` keeps them in memory, and writes them if it is told so.
_FUSED = {
    "mlp.router": rule("layers.{}.mlp.gate.weight"),
    "mlp.up.kernel": rule("layers.{}.mlp.experts.gate_up_proj"),
    "mlp.down.kernel": rule("layers.{}.mlp.experts.down_proj"),
}


@dataclass(frozen=True)
class ExpertNames:
    """A family's names for the parts of a layer with experts.

    Attributes:
      layer: name of the whole, after the layer's number.
      gate: name of an expert's gate projection.
      up: name of its up projection.
      down: name of its down projection.
    """

    layer: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def rules(self) -> Mapping[str, Rule]:
        """Returns the rules of the parameters below "blocks."."""
        layer = f"layers.{{}}.{self.layer}"
        gate, up, down = (
            f"{layer}.experts.{{}}.{name}.weight" for name in (self.gate, self.up, self.down)
        )
        return {
            "mlp.router": rule(f"{layer}.gate.weight"),
            "mlp.up.kernel": rule(gate, up),
            "mlp.down.kernel": rule(down),
        }


def expert_weights(config: DecoderConfig, names: ExpertNames | None = None) -> WeightMap:
    """Returns the weight map of a family that is Llama but for experts in some or all layers.

    Args:
      config: the configuration.
      names: the family's names; by default those that most families use.
    """
    layout, of_experts = llama_weights(config), (names or ExpertNames()).rules()
    start = "blocks."
    of_layer = {p[len(start) :]: rule for p, rule in layout.rules.items() if p.startswith(start)}
    shared = {p: rule for p, rule in layout.rules.items() if not p.startswith(start)}
    without_mlp = {p: rule for p, rule in of_layer.items() if not p.startswith("mlp.")}
    rules, instead, first = dict(shared), dict[str, Rule](), 0
    several = len(config.layers_of_stacks) > 1
    stacks = zip(config.layers_of_stacks, config.experts_of_stacks, strict=True)
    for number, (layers, experts) in enumerate(stacks):
        path = f"{start}{number}." if several else start
        here = {**without_mlp, **of_experts} if experts else of_layer
        rules |= _placed(here, path, first)
        instead |= _placed(_FUSED if experts else {}, path, first)
        first += layers
    return replace(layout, rules=rules, instead=instead)


def _placed(rules: Mapping[str, Rule], path: str, first_layer: int) -> dict[str, Rule]:
    """Returns the rules of a layer for a stack at `path` that begins with `first_layer`."""
    return {path + p: replace(rule, first_layer=first_layer) for p, rule in rules.items()}
