"""Every family's table is whole, and goes both ways."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer.checkpoint.interop.checkpoint_files import leaf_of
from jaxformer.checkpoint.interop.decoder import root
from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.fitting import fit
from jaxformer.checkpoint.interop.sines import Sines
from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.checkpoint.interop.table import Table
from jaxformer.checkpoint.interop.weight_norm import WeightNorm
from jaxformer.config.loading import load_config
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig

CONFIGS = Path(__file__).parents[3] / "configs" / "models"
PUBLISHED = {
    "mixtral-8x7b": "mixtral",
    "qwen3-30b-a3b": "qwen3_moe",
    "olmoe-1b-7b": "olmoe",
    "deepseek-v2-lite": "deepseek_v2",
    "deepseek-v3": "deepseek_v3",
    "qwen3-next-80b-a3b": "qwen3_next",
    "kimi-linear-48b-a3b": "kimi_linear",
    "jamba-mini": "jamba",
    "bert-base": "bert",
    "vit-b16": "vit",
    "t5-small": "t5",
    "modernbert-base": "modernbert",
    "wav2vec2-base": "wav2vec2",
    "hubert-large": "hubert",
    "whisper-tiny": "whisper",
}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "original_max_position_embeddings": 8}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.5, 2, 3],
    "long_factor": [2.0, 3.0, 4, 5],
    "original_max_position_embeddings": 32,
}
RECURRENT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3}
GRIFFIN = {"intermediate_size": 48, "num_attention_heads": 4, "lru_width": 24}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "decoder_sparse_step": 2,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 3,
    "linear_value_head_dim": 5,
}
LATENT = {
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "kv_lora_rank": 7,
    "q_lora_rank": 9,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
}
MSCALE = {**YARN, "mscale": 0.8, "mscale_all_dim": 0.707}
TWICE = {"full_attn_layers": [2, 5], "kda_layers": [1, 2, 3, 4]}
TYPES = ["full_attention", "sliding_attention", "sliding_attention"]
GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.125,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}
VIT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SPEECH = {
    **{key: value for key, value in SIZES.items() if key in VIT},
    "vocab_size": 7,
    "conv_dim": [3] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "llama ": {**SIZES, "attention_bias": True, "mlp_bias": True, "rope_scaling": YARN},
    "mistral": {**SIZES, "sliding_window": 5},
    "qwen2": {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen3": {**SIZES, "tie_word_embeddings": True},
    "gemma": {**SIZES, "hidden_act": "gelu"},
    "gemma2": {**SIZES, "sliding_window": 5, "attn_logit_softcapping": 50.0},
    "gemma3_text": {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2},
    "olmo2": {**SIZES, "rope_theta": 500000},
    "olmo3": {**SIZES, "sliding_window": 5, "rope_scaling": YARN, "layer_types": TYPES},
    "smollm3": {**SIZES, "no_rope_layer_interval": 2, "attention_bias": True},
    "granite": {**SIZES, **GRANITE, "mlp_bias": True},
    "granitemoe": {**SIZES, **GRANITE, "num_local_experts": 4, "tie_word_embeddings": True},
    "ministral": {**SIZES, "sliding_window": 5, "layer_types": TYPES},
    "mixtral": {**SIZES, "num_local_experts": 4},
    "qwen2_moe": {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 20},
    "qwen3_moe": {**SIZES, **EXPERTS, "mlp_only_layers": [0], "norm_topk_prob": True},
    "olmoe": {**SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": {
        **SIZES,
        **EXPERTS,
        **DELTA,
        "full_attention_interval": 3,
        "shared_expert_intermediate_size": 20,
    },
    "gpt_oss  ": {**SIZES, "num_local_experts": 4, "layer_types": ["full_attention"] * 3},
    "gpt_oss": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "deepseek_v2": {**SIZES, **LATENT, "q_lora_rank": None, "rope_scaling": MSCALE},
    "deepseek_v3": {**SIZES, **LATENT, "n_group": 2, "topk_group": 1, "num_mtp_layers": 2},
    "kimi_linear": {
        **{key: value for key, value in SIZES.items() if key != "head_dim"},
        "num_key_value_heads": 4,
        "num_hidden_layers": 5,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 5,
        "kv_lora_rank": 7,
        "linear_attn_config": {
            "num_heads": 2,
            "head_dim": 3,
            "full_attn_layers": [2, 5],
            "kda_layers": [1, 3, 4],
        },
        "moe_intermediate_size": 12,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_shared_experts": 2,
        "num_expert_group": 2,
    },
    "jamba": {
        **{key: value for key, value in SIZES.items() if key != "rms_norm_eps"},
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 3,
    },
    "jamba ": {
        **RECURRENT,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts": 1,
        "attn_layer_offset": 2,
        "mamba_dt_rank": 5,
    },
    "phi3": {**SIZES, "rope_scaling": LONGROPE, "sliding_window": 5},
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "mamba": {**RECURRENT, "state_size": 4},
    "mamba2": {**RECURRENT, "num_heads": 4, "head_dim": 8, "n_groups": 2, "state_size": 4},
    "recurrent_gemma": {**RECURRENT, **GRIFFIN, "attention_window_size": 5},
    "bert": {
        **{key: value for key, value in SIZES.items() if key in VIT},
        "vocab_size": 40,
        "hidden_act": "relu",
        "type_vocab_size": 3,
    },
    "bert ": {
        **{key: value for key, value in SIZES.items() if key in VIT},
        "vocab_size": 40,
        "architectures": ["BertModel"],
    },
    "vit": {
        **{key: value for key, value in SIZES.items() if key in VIT},
        "image_size": [8, 12],
        "patch_size": 4,
        "num_channels": 1,
        "num_labels": 5,
        "qkv_bias": False,
        "hidden_act": "relu",
    },
    "modernbert": {
        **{key: value for key, value in SIZES.items() if key in VIT},
        "vocab_size": 40,
        "num_hidden_layers": 5,
        "local_attention": 6,
        "architectures": ["ModernBertForMaskedLM"],
    },
    "modernbert ": {
        **{key: value for key, value in SIZES.items() if key in VIT},
        "vocab_size": 40,
        "num_hidden_layers": 1,
        "norm_bias": True,
        "mlp_bias": True,
        "attention_bias": True,
        "architectures": ["ModernBertModel"],
    },
    "wav2vec2": SPEECH,
    "wav2vec2 ": {**SPEECH, "do_stable_layer_norm": True},
    "hubert": {**SPEECH, "feat_extract_norm": "layer", "conv_bias": True},
    "whisper": {
        "vocab_size": 40,
        "d_model": 16,
        "num_mel_bins": 5,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 20,
        "max_source_positions": 50,
        "max_target_positions": 9,
    },
    "xlstm": {**RECURRENT, "num_heads": 2, "ffn_round_up_to_multiple_of": 8},
}


def table_of(name: str) -> Table:
    family = FAMILIES[name.strip()]
    section = family.read({"model_type": family.model_type, **MODELS[name]})
    return Table(family, ModelConfig.model_validate(section))


@pytest.mark.parametrize("name", MODELS)
def test_a_table_fills_every_number_once_and_goes_back_exactly(name: str) -> None:
    table = table_of(name)
    filled = {path: np.zeros(leaf["shape"], int) for path, leaf in table.leaves.items()}
    random = np.random.default_rng(0)
    for rule in table.rules:
        shapes = table.shapes(rule)
        # Halves, so that 1 + w is exact too.
        theirs = [
            random.integers(-8, 8, shape).astype(np.float32) / 2 for shape in rule.shapes(shapes)
        ]
        if isinstance(rule, WeightNorm):  # of many pairs that are one kernel, a file has one
            theirs = rule.to_theirs(rule.to_ours(theirs, shapes))
        if isinstance(rule, Sines):
            theirs = rule.to_theirs([])
        arrays = rule.to_ours(theirs, shapes)
        assert [array.shape for array in arrays] == shapes
        for found, expected in zip(rule.to_theirs(arrays), theirs, strict=True):
            np.testing.assert_array_equal(found, expected)
        for path in rule.ours:
            leaf, place = leaf_of(path, table.model)
            filled[leaf][place or ...] += 1
    for path, times in filled.items():
        np.testing.assert_array_equal(times, 1, err_msg=path)
    names = [name for rule in table.rules for name in rule.names]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", MODELS)
def test_a_family_writes_the_options_that_it_reads(name: str) -> None:
    table = table_of(name)
    _, differences = fit(table.family, table.model)
    assert differences == []


@pytest.mark.parametrize(("file", "family"), PUBLISHED.items())
def test_a_model_at_its_published_size_belongs_to_its_family(file: str, family: str) -> None:
    config = load_config(CONFIGS / f"{file}.yaml")
    _, differences = fit(FAMILIES[family], config.model)
    assert differences == []


def test_a_family_says_in_what_a_model_is_another_one() -> None:
    model = table_of("gemma2").model
    _, differences = fit(FAMILIES["llama"], model)
    assert "norm.placement is 'sandwich', where this family has 'pre'" in differences
    assert "scale_embeddings is 4.0, where this family has 1.0" in differences
    assert "mixer.logit_softcap of every layer is 50.0, where this family has null" in differences
    assert "mixer.window of layers 0, 2 is 5, where this family has null" in differences


def test_windows_of_layers_are_the_shortest_pattern() -> None:
    assert [layer.mixer.window for layer in table_of("gemma2").model.pattern] == [5, None]
    assert table_of("mistral").model.mixer.window == 5
    assert len(table_of("mistral").model.pattern) == 1
    assert [layer.mixer.window for layer in table_of("qwen2").model.pattern] == [None, None, 5]


def test_positions_of_layers_are_a_part_of_the_pattern() -> None:
    kinds = [entry.positions.kind for entry in table_of("smollm3").model.pattern]
    assert kinds == ["rope", "none"]
    gemma3 = table_of("gemma3_text").model
    assert [entry.positions.base for entry in gemma3.pattern] == [10000.0, 1000000.0]
    assert gemma3.positions.base == 10000.0


def test_a_family_without_multipliers_names_the_first_that_a_model_has() -> None:
    _, differences = fit(FAMILIES["llama"], table_of("granite").model)
    assert "logit_scale is 0.16666666666666666, where this family has 1.0" in differences
    assert "residual.multiplier is 0.22, where this family has 1.0" in differences


def test_a_whole_number_comes_back_from_its_power() -> None:
    for power in (-1, -0.5):
        for number in range(1, 300):
            assert root(number**power, power) == number
    assert root(3.0, -1) == 1 / 3


def test_recurrent_gemma_scales_embeddings_by_a_root_in_bfloat16() -> None:
    def scale(d_model: int) -> bool | float:
        options = {**MODELS["recurrent_gemma"], "hidden_size": d_model}
        return FAMILIES["recurrent_gemma"].read(options)["scale_embeddings"]

    assert scale(2560) == 50.5  # of 50.596
    assert scale(4096) is True


def infos(table: Table) -> dict[str, TensorInfo]:
    """All tensors of a file, by the names that an export has."""
    return {
        name: TensorInfo(shape, "float32")
        for rule in table.rules
        for name, shape in table.stored(rule).items()
    }


def test_what_predicts_further_tokens_is_left_out_of_qwen3_next() -> None:
    table = table_of("qwen3_next")
    tensors = infos(table)
    mtp = {"mtp.fc.weight": TensorInfo((16, 32), "float32")}
    assert table.rules_of(tensors | mtp, "a folder").keys() == tensors.keys()


def test_a_dense_layer_of_kimi_linear_has_the_name_of_the_authors_or_of_transformers() -> None:
    table = table_of("kimi_linear")
    tensors = infos(table)
    written = {name.replace(".mlp.", ".block_sparse_moe."): tensors[name] for name in tensors}
    assert written.keys() != tensors.keys()
    for each in (tensors, written):
        assert table.rules_of(each, "a folder").keys() == each.keys()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 7.0}}, "rope_parameters has options"),
        ("olmo3", {"rope_theta": 7.0}, "layers with full attention alone, and 500000 for those"),
        ("olmo3", {"rope_parameters": {"sliding_attention": 7}}, "7; allowed: keys with values"),
        ("olmo3", {"rope_scaling": {"factor": 2.0}}, "rope_scaling has factor, but no rope_type"),
        ("olmo3", {"rope_scaling": LONGROPE}, "rope_scaling has type"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "one for each of the 3 layers"),
        ("smollm3", {"no_rope_layers": [1, 0, 2]}, "no_rope_layers [1, 0, 2]; allowed"),
        ("granite", {"residual_multiplier": 0}, "residual_multiplier 0; allowed: a positive"),
        ("granitemoe", {"num_experts_per_tok": 5}, "num_experts_per_tok 5, more than"),
        ("ministral", {"layer_types": TYPES[:2]}, "2 layer_types, not one for each layer"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias True"),
        ("phi3", {"interpolate_factor": 2}, "interpolate_factor 2"),
        ("mamba", {"use_bias": True}, "use_bias True"),
        ("mamba2", {"num_heads": 3}, "num_heads 3 of head_dim 8"),
        ("mamba2", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ("qwen3_next", {"layer_types": ["full_attention"] * 3}, "no layer with gated_delta"),
        ("recurrent_gemma", {"block_types": ["recurrent", "atention"]}, "atention"),
        ("xlstm", {"weight_mode": "fused"}, "weight_mode 'fused'"),
        ("qwen3_next", {"linear_num_key_heads": 3}, "not divisible by its linear_num_key_heads 3"),
        ("qwen3_next", {"attention_bias": True}, "attention_bias True"),
        ("kimi_linear", {"mla_use_nope": False}, "mla_use_nope False"),
        ("kimi_linear", {"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ("kimi_linear", {"linear_attn_config": TWICE}, "every layer from 1 to 5 once"),
        ("jamba", {"attn_layer_offset": 3}, "less than its attn_layer_period 3"),
        ("jamba", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms False"),
        ("jamba", {"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"hidden_act": "silu"}, "hidden_act 'silu'"),
        ("modernbert", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("modernbert", {"rope_scaling": YARN}, "rope_scaling {"),
        ("modernbert", {"layer_types": TYPES}, "3 layer_types, not one for each layer"),
        ("wav2vec2", {"conv_bias": True}, "conv_bias True"),
        ("wav2vec2", {"conv_kernel": [10] * 7}, "allowed: [10, 3, 3, 3, 3, 2, 2]"),
        ("wav2vec2", {"conv_dim": [3, 3, 3, 3, 3, 3, 4]}, "seven times the same number"),
        ("wav2vec2", {"add_adapter": True}, "add_adapter True"),
        ("wav2vec2", {"adapter_attn_dim": 16}, "adapter_attn_dim 16"),
        ("wav2vec2", {"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06"),
        ("hubert", {"feat_proj_layer_norm": False}, "feat_proj_layer_norm False"),
        ("hubert", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm True"),
        ("whisper", {"activation_function": "relu"}, "activation_function 'relu'"),
        ("whisper", {"scale_embedding": True}, "scale_embedding True"),
        ("whisper", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("whisper", {"num_hidden_layers": 2}, "num_hidden_layers 2"),
        ("whisper", {"decoder_attention_heads": 3}, "by its decoder_attention_heads 3"),
    ],
)
def test_an_option_that_means_another_model_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        FAMILIES[name].read({**MODELS[name], **options})
