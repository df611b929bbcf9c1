"""What families with a mixture of experts share."""

from dataclasses import dataclass, replace

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
from jaxformer.model.channel_mixers.dense import DenseConfig
from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.channel_mixers.router import SELECTION_BIAS
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer

CHOSEN = "num_experts_per_tok"


def experts_of(model: ModelConfig) -> MoEConfig:
    """The experts of the model's first layer that has some.

    Raises:
        UserError: none has.
    """
    for layer in model.pattern_layers():
        if isinstance(layer.ffn, MoEConfig):
            return layer.ffn
    raise UserError("no layer with experts, where this family has some")


def dense_layers(model: ModelConfig) -> tuple[list[int], int]:
    """The numbers of the layers without experts, and the width of their FFN, or that of an expert
    if there are none."""
    layers = enumerate(model.layers())
    dense = {index: layer.ffn for index, layer in layers if isinstance(layer.ffn, DenseConfig)}
    return list(dense), next(iter(dense.values()), experts_of(model)).d_hidden


def experts_section(
    hub: HubConfig, count: str, d_hidden: str, *, normalize: bool, chosen: str = CHOSEN
) -> Json:
    """Our FFN of gated experts, from the keys of their number, of their width, and of how many a
    token visits.

    Raises:
        UserError: a token visits more experts than there are.
    """
    experts, visited = hub.count(count), hub.count(chosen)
    if visited > experts:
        raise UserError(f"{hub.name} has {chosen} {visited}, more than {count} {experts}")
    return {
        "kind": "moe",
        "num_experts": experts,
        "experts_per_token": visited,
        "d_hidden": hub.count(d_hidden),
        "normalize": normalize,
    }


def groups_section(hub: HubConfig, count: str, groups: str = "n_group") -> Json:
    """The options of our FFN for experts in groups, from the keys of both numbers.

    Raises:
        UserError: a token may choose from more groups than there are, or they do not divide the
            experts.
    """
    number, kept = hub.count(groups, 1), hub.count("topk_group", 1)
    if kept > number:
        raise UserError(f"{hub.name} has topk_group {kept}, more than its {groups} {number}")
    hub.need_divisible(count, hub.count(count), groups, number)
    return {"groups": number, "kept_groups": kept}


def expert_rules(
    moe: MoEConfig,
    names: dict[str, str] = GATED_FFN,
    shared: str = "shared_expert",
    router: str = "gate",
) -> list[Rule]:
    """A `router`, and matrices of every expert by their `names`, {ours: theirs}, and those of the
    `shared` expert."""
    rules = linear_rules(router, "router")
    if moe.balance.bias_rate is not None:
        rules.append(row(f"{router}.e_score_correction_bias", f"router/{SELECTION_BIAS}"))
    for expert in range(moe.num_experts):
        for ours, theirs in names.items():
            matrices = linear_rules(f"experts.{expert}.{theirs}", f"experts_{ours}")
            rules += [
                replace(rule, ours=tuple(f"{path}#{expert}" for path in rule.ours))
                for rule in matrices
            ]
    if moe.shared is not None:
        for ours, theirs in GATED_FFN.items():
            rules += linear_rules(f"{shared}.{theirs}", f"shared/{ours}")
        if moe.shared.gate:
            rules += linear_rules(f"{shared}_gate", "shared_gate")
    return rules


def ffn_rules(
    layer: Layer,
    names: dict[str, str] = GATED_FFN,
    shared: str = "shared_expert",
    router: str = "gate",
) -> list[Rule]:
    """Experts, see `expert_rules`, or a dense FFN."""
    if isinstance(layer.ffn, MoEConfig):
        return expert_rules(layer.ffn, names, shared, router)
    return gated_ffn_rules(layer)


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
    return [
        *norm_rules(PRE_NORMS),
        *within("self_attn", "mixer", attention_rules(attention_of(layer))),
        *within(place, "ffn", ffn_rules(layer, names)),
    ]
