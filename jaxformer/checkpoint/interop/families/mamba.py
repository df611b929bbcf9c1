"""Mamba (Gu and Dao, 2023, arXiv:2312.00752)."""

from typing import Any

from jaxformer.checkpoint.interop.convolution import convolution_rules
from jaxformer.checkpoint.interop.decoder import (
    VECTOR,
    first_layer,
    head_rules,
    mixer_of,
    model_section,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig, shown
from jaxformer.checkpoint.interop.rules import Linear, Rule, row, within
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.mixers.mamba import MambaConfig

# Initialization, rounding of sums, and what the first release's files say about themselves.
UNREAD = (
    "d_inner",
    "d_model",
    "emb_initializer_range",
    "fused_add_norm",
    "n_layer",
    "norm_before_gate",
    "pad_vocab_size_multiple",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "ssm_cfg",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_scale",
    "use_associative_scan",
    "use_mambapy",
)


SHARED_DEFAULTS: Json = {
    "expand": 2,
    "conv_kernel": 4,
    "layer_norm_epsilon": 1e-5,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "initializer_range": 0.1,
}
DEFAULTS: Json = {
    **SHARED_DEFAULTS,
    "state_size": 16,
    "time_step_rank": "auto",  # hidden_size / 16, rounded up
    "tie_word_embeddings": True,
}


def to_section(hub: HubConfig, mixer: Json) -> Json:
    """Our `model:` section for layers of mixers alone, with biases only in their convolutions."""
    hub.need("hidden_act", "silu")
    hub.need("use_bias", False)
    hub.need("use_conv_bias", True)
    hub.need("rms_norm", True)
    for key in UNREAD:
        hub.take(key, None)
    d_model, expansion = hub.count("hidden_size"), hub.number("expand")
    width = hub.take("intermediate_size", expansion * d_model)
    if width != expansion * d_model:
        raise UserError(
            f"{hub.name} has intermediate_size {shown(width)}, which is not expand {expansion:g} × "
            f"hidden_size {d_model}"
        )
    sizes = {
        "expansion": expansion,
        "state_size": hub.count("state_size"),
        "conv_width": hub.count("conv_kernel"),
    }
    return model_section(
        hub,
        mixers=[mixer | sizes],
        ffn=None,
        norm={"eps": hub.number("layer_norm_epsilon")},
        positions={"kind": "none"},
    )


def from_section(model: ModelConfig, mixer: Any) -> Json:
    """The keys that both Mambas have.

    Raises:
        UserError: an expansion that is no whole number.
    """
    if mixer.expansion != round(mixer.expansion):
        raise UserError(
            f"model.mixer.expansion is {mixer.expansion}; config.json has whole numbers only"
        )
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "expand": round(mixer.expansion),
        "state_size": mixer.state_size,
        "conv_kernel": mixer.conv_width,
        "layer_norm_epsilon": model.norm.eps,
        "initializer_range": model.init.std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def backbone_rules(model: ModelConfig, mixer: list[Rule]) -> list[Rule]:
    """A whole model whose layers are a norm and a mixer."""
    layer = [row("norm.weight", "mixer_norm/scale", VECTOR), *within("mixer", "mixer", mixer)]
    rules = [row("backbone.embeddings.weight", "embedding")]
    for index in range(model.num_layers):
        rules += within(f"backbone.layers.{index}", f"layers/{index}", layer)
    rules.append(row("backbone.norm_f.weight", "final_norm/scale", VECTOR))
    return rules + head_rules(model)


def to_config(hub: HubConfig) -> Json:
    is_auto = hub.take("time_step_rank") == "auto"
    rank = None if is_auto else hub.count("time_step_rank")
    return to_section(hub, {"kind": "mamba", "dt_rank": rank})


def from_config(model: ModelConfig) -> Json:
    mixer = mixer_of(first_layer(model), MambaConfig)
    return {**from_section(model, mixer), "time_step_rank": mixer.dt_rank or "auto"}


MIXER = [
    Rule("in_proj.weight", ("input/kernel", "gate/kernel"), Linear()),
    *convolution_rules("conv1d", "conv"),
    row("x_proj.weight", "select/kernel", Linear()),
    row("dt_proj.weight", "dt/kernel", Linear()),
    row("dt_proj.bias", "dt_bias", VECTOR),
    row("A_log", "a_log"),
    row("D", "skip", VECTOR),
    row("out_proj.weight", "output/kernel", Linear()),
]


def rules(model: ModelConfig) -> list[Rule]:
    return backbone_rules(model, MIXER)


MAMBA = Family(
    "mamba", "MambaForCausalLM", to_config, from_config, rules, DEFAULTS, prefix="backbone."
)
