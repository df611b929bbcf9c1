"""What families with a mixture of experts share."""

from dataclasses import dataclass

import numpy as np

from jaxformer.checkpoint.interop.decoder import (
    GATED_FFN,
    PRE_NORMS,
    attention_of,
    attention_rules,
    gated_ffn_rules,
    linear_rules,
    norm_rules,
)
from jaxformer.checkpoint.interop.family import Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule, Shape, row, within
from jaxformer.errors import UserError
from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer

SHARED, SHARED_GATE = "shared_expert", "shared_expert_gate"


def experts_of(model: ModelConfig) -> MoEConfig:
    """The experts of the model's first layer that has some.

    Raises:
        UserError: none has.
    """
    for layer in model.pattern_layers():
        if isinstance(layer.ffn, MoEConfig):
            return layer.ffn
    raise UserError("no layer with experts, where this family has some")


def experts_section(hub: HubConfig, count: str, d_hidden: str, *, normalize: bool) -> Json:
    """Our FFN of gated experts, from the keys of their number and their width.

    Raises:
        UserError: a token visits more experts than there are.
    """
    experts, chosen = hub.count(count), hub.count("num_experts_per_tok")
    if chosen > experts:
        raise UserError(f"{hub.name} has num_experts_per_tok {chosen}, more than {count} {experts}")
    return {
        "kind": "moe",
        "num_experts": experts,
        "experts_per_token": chosen,
        "d_hidden": hub.count(d_hidden),
        "normalize": normalize,
    }


def expert_rules(moe: MoEConfig, names: dict[str, str] = GATED_FFN) -> list[Rule]:
    """A router, and matrices of every expert by their `names`, {ours: theirs}."""
    rules = linear_rules("gate", "router")
    for expert in range(moe.num_experts):
        for ours, theirs in names.items():
            matrices = linear_rules(f"experts.{expert}.{theirs}", f"experts_{ours}")
            rules += [
                Rule(r.theirs, tuple(f"{path}#{expert}" for path in r.ours), r.transform)
                for r in matrices
            ]
    if moe.shared is not None:
        for ours, theirs in GATED_FFN.items():
            rules += linear_rules(f"{SHARED}.{theirs}", f"shared/{ours}")
        if moe.shared.gate:
            rules += linear_rules(SHARED_GATE, "shared_gate")
    return rules


@dataclass(frozen=True)
class Stacked:
    """torch's [experts, outputs, inputs], of all experts in one tensor."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs.swapaxes(1, 2)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.swapaxes(1, 2)


def stacked_expert_rules(gate_and_in: str, out: str) -> list[Rule]:
    """The matrices of all experts, gate and input as one, by their names."""
    together = ("experts_gate/kernel", "experts_in/kernel")
    return [
        Rule(gate_and_in, together, Stacked(), axis=1),
        row(out, "experts_out/kernel", Stacked()),
    ]


def layer_rules(layer: Layer, place: str = "mlp", names: dict[str, str] = GATED_FFN) -> list[Rule]:
    """Attention, and experts or a dense FFN at `place`."""
    moe = layer.ffn if isinstance(layer.ffn, MoEConfig) else None
    ffn = gated_ffn_rules(layer) if moe is None else expert_rules(moe, names)
    return [
        *norm_rules(PRE_NORMS),
        *within("self_attn", "mixer", attention_rules(attention_of(layer))),
        *within(place, "ffn", ffn),
    ]
