"""DeepSeek-V2 (2024, arXiv:2405.04434): latent attention, and fine-grained experts beside shared
ones. DeepSeek-V3 (2024, arXiv:2412.19437): scores by a sigmoid, balanced by biases, and modules
that predict further tokens. The lowest layers of both are dense."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from jaxformer.checkpoint.interop.decoder import (
    PRE_NORMS,
    gated_ffn,
    layers_of,
    mixer_of,
    model_rules,
    model_section,
    norm_rules,
    rms_norm,
    sizes_of_any,
)
from jaxformer.checkpoint.interop.experts import (
    dense_layers,
    experts_of,
    experts_section,
    ffn_rules,
    groups_section,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.latent import (
    Neighbours,
    latent_attention,
    latent_rules,
    latent_sizes,
    mscale_all_dim,
    yarn_scale,
)
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, from_rope, to_rope
from jaxformer.checkpoint.interop.rules import Linear, Rule, Shape, row, within
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.further.modules import ModulesConfig
from jaxformer.model.layer import Layer
from jaxformer.model.mixers.latent_attention import LatentAttentionConfig

_SHARED: Json = {
    **ROPE_DEFAULTS,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
DEFAULTS2: Json = {
    **_SHARED,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "first_k_dense_replace": 0,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "n_group": None,
    "topk_group": None,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "moe_intermediate_size": 1407,
}
DEFAULTS3: Json = {
    **_SHARED,
    "num_key_value_heads": 128,  # null: as many as num_attention_heads
    "max_position_embeddings": 4096,
    "rope_interleave": True,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 2048,
    "num_mtp_layers": 1,
}
NULLABLE = ("num_key_value_heads", "q_lora_rank")
FURTHER = "num_nextn_predict_layers"  # and in transformers, num_mtp_layers
COPIES = (  # that further modules have
    (r"model\.layers\.\d+\.embed_tokens\.weight", "model.embed_tokens.weight"),
    (r"model\.layers\.\d+\.shared_head\.head\.weight", "lm_head.weight"),
)
MODULE_NORMS = {"enorm": "embedding_norm", "hnorm": "hidden_norm", "shared_head.norm": "norm"}


# From config.json -------------------------------------------------------------------------------


def to_deepseek2(hub: HubConfig) -> Json:
    hub.need("scoring_func", "softmax")
    hub.need("norm_topk_prob", False)
    for unread in ("n_group", "topk_group"):  # unless the method is of groups
        hub.take(unread, None)
    method = hub.need("topk_method", "greedy", "group_limited_greedy")
    hub.need("mlp_bias", False)
    moe = _experts(hub, normalize=False)
    groups = groups_section(hub, "n_routed_experts") if method == "group_limited_greedy" else {}
    return _section(hub, {**moe, **groups})


def to_deepseek3(hub: HubConfig) -> Json:
    hub.need("scoring_func", "sigmoid")
    hub.need("topk_method", "noaux_tc")
    hub.need("rope_interleave", True)
    moe = {
        **_experts(hub, normalize=hub.flag("norm_topk_prob")),
        "score": "sigmoid",
        **groups_section(hub, "n_routed_experts"),
        "group_score": "sum_of_two",
        "balance": {"bias_rate": 0.0},  # biases stay as they are, as in the end of pre-training
    }
    count = hub.count(FURTHER, hub.count("num_mtp_layers", least=0), least=0)
    further = {"further": {"kind": "modules", "count": count, "own_norms": True}} if count else {}
    return {**_section(hub, moe), **further}


def _experts(hub: HubConfig, *, normalize: bool) -> Json:
    hub.need("moe_layer_freq", 1)
    for unread in ("ep_size", "aux_loss_alpha", "seq_aux"):  # of training
        hub.take(unread, None)
    moe = experts_section(hub, "n_routed_experts", "moe_intermediate_size", normalize=normalize)
    return {
        **moe,
        "scale": hub.number("routed_scaling_factor"),
        "shared": {"count": hub.count("n_shared_experts")},
    }


def _section(hub: HubConfig, moe: Json) -> Json:
    hub.need("hidden_act", "silu")
    mixer = latent_attention(hub)
    hub.take("head_dim", None)  # transformers sets it to qk_rope_head_dim
    mixer["scale"] = yarn_scale(hub, mixer)
    dense, num_layers = hub.count("first_k_dense_replace", least=0), layers_of(hub)
    if dense >= num_layers:
        raise UserError(
            f"{hub.name} has first_k_dense_replace {dense}, as many as num_hidden_layers "
            f"{num_layers} or more, so that no layer has experts; allowed: fewer"
        )
    return model_section(
        hub,
        mixers=[mixer],
        ffn=moe,
        first=[{"ffn": gated_ffn(hub, "swiglu")}] * dense,
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, mixer["rope_dim"]),
    )


def as_stored(config: Json, tensors: Collection[str]) -> Json:
    """`config` with as many further modules as the files hold: transformers leaves them out."""
    layer = r"model\.layers\.(\d+)\.eh_proj\.weight"
    stored = sum(re.fullmatch(layer, name) is not None for name in tensors)
    return {**config, FURTHER: stored}


# To config.json ---------------------------------------------------------------------------------


def _options(model: ModelConfig) -> Json:
    moe, last = experts_of(model), model.layers()[-1]
    dense, width = dense_layers(model)
    mixer, rope = _mixer(last), from_rope(last.positions)
    scaling = rope["rope_parameters"]
    if scaling["rope_type"] == "yarn" and mixer.scale is not None:
        scaling["mscale_all_dim"] = mscale_all_dim(mixer, scaling["factor"])
    return {
        **sizes_of_any(model, width),
        **latent_sizes(mixer),
        **rope,
        "hidden_act": "silu",
        "first_k_dense_replace": len(dense),
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.d_hidden,
        "n_shared_experts": moe.shared_width // moe.d_hidden,
        "routed_scaling_factor": moe.scale,
        "n_group": moe.groups,
        "topk_group": moe.kept_groups,
        "norm_topk_prob": moe.normalize,
    }


def from_deepseek2(model: ModelConfig) -> Json:
    grouped = experts_of(model).groups > 1
    return {**_options(model), "topk_method": "group_limited_greedy" if grouped else "greedy"}


def from_deepseek3(model: ModelConfig) -> Json:
    count = model.further.count if isinstance(model.further, ModulesConfig) else 0
    return {**_options(model), FURTHER: count}


# Tensors ----------------------------------------------------------------------------------------


def rules(model: ModelConfig) -> list[Rule]:
    table = model_rules(model, [_layer_rules(layer) for layer in model.layers()])
    count = 0 if model.further is None else model.further.count
    for k in range(1, count + 1):
        place, module = f"model.layers.{model.num_layers + k - 1}", f"further/module_{k}"
        norms = {theirs: f"{module}_{ours}" for theirs, ours in MODULE_NORMS.items()}
        joined = row("eh_proj.weight", f"{module}_projection/kernel", HalvesExchanged())
        own = [*norm_rules(norms), joined]
        table += [replace(rule, theirs=f"{place}.{rule.theirs}") for rule in own]
        table += within(place, module, _layer_rules(model.further_layer()))
    return table


@dataclass(frozen=True)
class HalvesExchanged:
    """Like `Linear`, where theirs joins two inputs in the other order."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return _exchanged(Linear().to_ours(theirs, shape))

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return Linear().to_theirs(_exchanged(ours))


def _exchanged(matrix: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(matrix, 2)[::-1])


def _mixer(layer: Layer) -> LatentAttentionConfig:
    return mixer_of(layer, LatentAttentionConfig)


def _layer_rules(layer: Layer) -> list[Rule]:
    mixer = _mixer(layer)
    return [
        *norm_rules(PRE_NORMS),
        *within("self_attn", "mixer", latent_rules(mixer, Neighbours(mixer.rope_dim))),
        *within("mlp", "ffn", ffn_rules(layer, shared="shared_experts")),
    ]


DEEPSEEK2 = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    to_deepseek2,
    from_deepseek2,
    rules,
    DEFAULTS2,
    NULLABLE,
)
DEEPSEEK3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    to_deepseek3,
    from_deepseek3,
    rules,
    DEFAULTS3,
    NULLABLE,
    copies=COPIES,
    as_stored=as_stored,
)
