"""xLSTM 7B (Beck et al., 2025, arXiv:2503.13427): layers of mLSTM and SwiGLU."""

from jaxformer.checkpoint.interop.decoder import (
    VECTOR,
    ffn_of,
    first_layer,
    head_rules,
    layers_of,
    linear_rules,
    mixer_of,
    model_section,
    norm_rules,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Linear, Rule, row, within
from jaxformer.model.config import ModelConfig
from jaxformer.model.mixers.mlstm import MLSTMConfig

# These decide how the model is computed, not what.
UNREAD = (
    "add_out_norm",
    "autocast_kernel_dtype",
    "chunk_size",
    "chunkwise_kernel",
    "inference_state_dtype",
    "max_inference_chunksize",
    "mode",
    "norm_reduction_force_float32",
    "return_last_states",
    "sequence_kernel",
    "step_kernel",
)
QUERIES_AND_GATES = {"query": "q", "key": "k", "value": "v", "gate": "ogate_preact"}
FFN = {"gate": "proj_up_gate", "in": "proj_up", "out": "proj_down"}
NORMS = {"norm_mlstm": "mixer_norm", "norm_ffn": "ffn_norm"}

DEFAULTS: Json = {
    "embedding_dim": None,  # hidden_size
    "num_blocks": None,  # num_hidden_layers
    "num_heads": 8,
    "use_bias": False,
    "norm_eps": 1e-6,
    "qk_dim_factor": 0.5,
    "v_dim_factor": 1.0,
    "eps": 1e-6,
    "ffn_proj_factor": 2.667,
    "ffn_round_up_to_multiple_of": 64,
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
    "weight_mode": "single",
    "tie_word_embeddings": False,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("use_bias", False)
    hub.need("weight_mode", "single")
    hub.need("eps", 1e-6)
    for key in UNREAD:
        hub.take(key, None)
    d_model = hub.count("hidden_size")
    hub.need("embedding_dim", d_model)
    hub.need("num_blocks", layers_of(hub))
    width = d_model * hub.number("ffn_proj_factor")
    multiple = hub.count("ffn_round_up_to_multiple_of")
    num_heads, widths = hub.count("num_heads"), []
    for key in ("qk_dim_factor", "v_dim_factor"):
        widths.append(int(d_model * hub.number(key)))
        hub.need_divisible(f"hidden_size × {key}", widths[-1], "num_heads", num_heads)
    mixer = {
        "kind": "mlstm",
        "num_heads": num_heads,
        "key_expansion": widths[0] / d_model,
        "value_expansion": widths[1] / d_model,
        "gate_softcap": hub.number("gate_soft_cap"),
    }
    return model_section(
        hub,
        mixers=[mixer],
        ffn={"kind": "swiglu", "d_hidden": int((width + multiple - 1) // multiple) * multiple},
        norm={"eps": hub.need("norm_eps", 1e-6)},  # mLSTM's own norm has it too
        positions={"kind": "none"},
        logit_softcap=hub.number("output_logit_soft_cap"),
    )


def from_config(model: ModelConfig) -> Json:
    layer = first_layer(model)
    mixer, ffn = mixer_of(layer, MLSTMConfig), ffn_of(layer)
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_heads": mixer.num_heads,
        "qk_dim_factor": mixer.key_expansion,
        "v_dim_factor": mixer.value_expansion,
        "gate_soft_cap": mixer.gate_softcap,
        "ffn_proj_factor": ffn.d_hidden / model.d_model,
        "ffn_round_up_to_multiple_of": ffn.d_hidden,
        "norm_eps": model.norm.eps,
        "output_logit_soft_cap": model.logit_softcap,
        "autocast_kernel_dtype": "float32",
        "tie_word_embeddings": model.tie_embeddings,
    }


def rules(model: ModelConfig) -> list[Rule]:
    layer = [
        *norm_rules(NORMS),
        *within("mlstm_layer", "mixer", _mixer_rules()),
        *(
            rule
            for ours, theirs in FFN.items()
            for rule in linear_rules(f"ffn.{theirs}", f"ffn/{ours}")
        ),
    ]
    rules = [row("backbone.embeddings.weight", "embedding")]
    for index in range(model.num_layers):
        rules += within(f"backbone.blocks.{index}", f"layers/{index}", layer)
    rules.append(row("backbone.out_norm.weight", "final_norm/scale", VECTOR))
    return rules + head_rules(model)


def _mixer_rules() -> list[Rule]:
    rules: list[Rule] = []
    for ours, theirs in QUERIES_AND_GATES.items():
        rules += linear_rules(theirs, ours)
    for ours, theirs in {"input_gate": "igate_preact", "forget_gate": "fgate_preact"}.items():
        rules.append(row(f"{theirs}.weight", f"{ours}/kernel", Linear()))
        rules.append(row(f"{theirs}.bias", f"{ours}_bias", VECTOR))
    rules.append(row("multihead_norm.weight", "scale", VECTOR))
    return [*rules, *linear_rules("out_proj", "output", inputs=2)]


XLSTM = Family(
    "xlstm", "xLSTMForCausalLM", to_config, from_config, rules, DEFAULTS, prefix="backbone."
)
