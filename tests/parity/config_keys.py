"""A config.json of every family, with each key that it may have, as far as possible with a value
that is not transformers' own default, so that a key left out is another model."""

from typing import Any

Json = dict[str, Any]

# A head of hidden_size / num_attention_heads = 16 features, and one of 24 where files say it.
SIZES: Json = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.03,
    "rms_norm_eps": 1e-4,
    "bos_token_id": 0,
    "eos_token_id": 130,
    "pad_token_id": 3,
    "use_cache": False,
    "attention_dropout": 0.1,
}
THETA: Json = {"rope_theta": 500000.0}
LLAMA: Json = {**SIZES, **THETA, "hidden_act": "silu", "head_dim": 24, "tie_word_embeddings": True}
LINEAR: Json = {"rope_type": "linear", "factor": 4.0}
LLAMA3: Json = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN: Json = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "attention_factor": 1.25,
    "truncate": False,
}
DEEPSEEK: Json = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
LONGROPE: Json = {
    "rope_type": "longrope",
    "short_factor": [1.0 + pair / 4 for pair in range(6)],
    "long_factor": [2.0 + pair / 4 for pair in range(6)],
    "original_max_position_embeddings": 64,
    "factor": 3.0,
    "attention_factor": 1.25,
}
QWEN: Json = {
    **SIZES,
    **THETA,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "sliding_window": 9,
    "max_window_layers": 2,
}
WINDOW_LAST = ["full_attention"] * 3 + ["sliding_attention"]
WINDOW_FIRST = ["sliding_attention"] * 3 + ["full_attention"]
GEMMA: Json = {
    **SIZES,
    **THETA,
    "head_dim": 24,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "use_bidirectional_attention": False,
}
PHI3: Json = {
    **{key: value for key, value in LLAMA.items() if key != "head_dim"},
    "sliding_window": 9,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
}
MAMBA: Json = {
    "vocab_size": 131,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "state_size": 8,
    "expand": 3,
    "conv_kernel": 3,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "initializer_range": 0.03,
    "residual_in_fp32": False,
    "time_step_min": 0.01,
    "time_step_max": 0.2,
    "time_step_floor": 1e-3,
    "rescale_prenorm_residual": True,
    "bos_token_id": 5,
    "eos_token_id": 6,
    "pad_token_id": 7,
}

GEMMA3: Json = {
    **GEMMA,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 20,
    "sliding_window": 9,
    "final_logit_softcapping": 20.0,
}
ROPES: Json = {
    "full_attention": {**YARN, "rope_theta": 7000.0},
    "sliding_attention": {**LINEAR, "rope_theta": 300.0},
}
SMOLLM3: Json = {
    **LLAMA,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "mlp_bias": True,
    "use_sliding_window": True,
    "sliding_window": 9,
    "max_window_layers": 28,
    "pretraining_tp": 2,
}
GRANITE: Json = {
    **{key: value for key, value in LLAMA.items() if key != "head_dim"},
    "attention_bias": True,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}
EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "decoder_sparse_step": 2,
}
CONFIGS: dict[str, Json] = {
    "llama": {**LLAMA, "attention_bias": True, "mlp_bias": True, "pretraining_tp": 2},
    "llama_linear": {**LLAMA, "rope_scaling": LINEAR},
    "llama_new": {**SIZES, "rope_parameters": {**LINEAR, **THETA}},
    "llama_both": {**LLAMA, "rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 9.0, **YARN}},
    "llama_llama3": {**LLAMA, "rope_scaling": LLAMA3},
    "llama_yarn": {**LLAMA, "rope_scaling": YARN},
    "llama_yarn_deepseek": {**LLAMA, "rope_scaling": DEEPSEEK},
    "llama_longrope": {**LLAMA, "head_dim": 12, "rope_scaling": LONGROPE},
    "llama_dynamic": {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **THETA}},
    "mistral": {**LLAMA, "sliding_window": 9},
    "qwen2": QWEN,
    "qwen2_layer_types": {**QWEN, "layer_types": WINDOW_LAST},
    "qwen3": {**QWEN, "head_dim": 24, "attention_bias": True},
    "qwen3_layer_types": {**QWEN, "layer_types": WINDOW_LAST, "head_dim": 24},
    "gemma": {**GEMMA, "hidden_act": "gelu_pytorch_tanh"},
    "gemma_first": {**GEMMA, "hidden_act": "gelu", "hidden_activation": None},
    "gemma2": {
        **GEMMA,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 20,
        "sliding_window": 9,
        "attn_logit_softcapping": 40.0,
        "final_logit_softcapping": 20.0,
    },
    "gemma2_layer_types": {
        **GEMMA,
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": 9,
        "sliding_window_size": 9,
        "layer_types": WINDOW_FIRST,
        "rope_parameters": {**THETA, "rope_type": "default"},
    },
    "gemma3_text": {
        **GEMMA3,
        "rope_scaling": LINEAR,
        "rope_local_base_freq": 300.0,
        "sliding_window_pattern": 3,
        "cache_implementation": "hybrid",
    },
    "gemma3_text_new": {**GEMMA3, "layer_types": WINDOW_LAST, "rope_parameters": ROPES},
    "olmo2": {**SIZES, **THETA, "hidden_act": "silu", "attention_bias": True},
    "olmo3": {
        **SIZES,
        **THETA,
        "hidden_act": "silu",
        "attention_bias": True,
        "sliding_window": 9,
        "rope_scaling": YARN,
    },
    "olmo3_new": {
        **SIZES,
        "sliding_window": 9,
        "layer_types": WINDOW_LAST,
        "rope_parameters": ROPES,
    },
    "smollm3": {**SMOLLM3, "no_rope_layer_interval": 2, "rope_scaling": LINEAR},
    "smollm3_lists": {
        **SMOLLM3,
        "no_rope_layers": [0, 1, 1, 0],
        "layer_types": WINDOW_LAST,
    },
    "granite": {**GRANITE, "mlp_bias": True, "rope_scaling": LLAMA3},
    "granitemoe": {**GRANITE, "num_local_experts": 5, "num_experts_per_tok": 3},
    "ministral": {**LLAMA, "sliding_window": 9, "layer_types": WINDOW_LAST},
    "ministral_new": {**LLAMA, "sliding_window": 9, "rope_parameters": {**LINEAR, **THETA}},
    "mixtral": {**LLAMA, "sliding_window": 9, "num_local_experts": 5, "num_experts_per_tok": 3},
    "qwen2_moe": {**QWEN, **EXPERTS, "shared_expert_intermediate_size": 40, "qkv_bias": False},
    "qwen3_moe": {**SIZES, **THETA, **EXPERTS, "attention_bias": True, "mlp_only_layers": [1]},
    "qwen3_moe_new": {**SIZES, "num_local_experts": 9, "rope_parameters": {**LINEAR, **THETA}},
    "olmoe": {**SIZES, **THETA, "num_experts": 9, "norm_topk_prob": True, "attention_bias": True},
    "phi3": {**PHI3, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75},
    "phi3_longrope": {
        **PHI3,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {**LONGROPE, "original_max_position_embeddings": 32},
    },
    "phi3_of_phi4_mini": {
        **PHI3,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {key: LONGROPE[key] for key in ("short_factor", "long_factor")}
        | {"type": "longrope"},
        "attention_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
    },
    "phi3_new": {
        **PHI3,
        "original_max_position_embeddings": 64,
        "rope_parameters": {**LONGROPE, **THETA, "partial_rotary_factor": 0.75},
    },
    "gpt2": {
        "vocab_size": 131,
        "n_positions": 64,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 96,
        "n_ctx": 64,
        "activation_function": "gelu_pytorch_tanh",
        "layer_norm_epsilon": 1e-4,
        "initializer_range": 0.03,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": False,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "summary_type": "last",
        "bos_token_id": 0,
        "eos_token_id": 130,
    },
    "mamba": {
        **MAMBA,
        "layer_norm_epsilon": 1e-4,
        "time_step_rank": 5,
        "time_step_scale": 2.0,
        "time_step_init_scheme": "constant",
        "tie_word_embeddings": False,
        "intermediate_size": 192,
        "use_mambapy": True,
        "use_associative_scan": False,
    },
    "mamba_auto": {**MAMBA, "hidden_size": 68, "time_step_rank": "auto"},
    "mamba2": {
        **MAMBA,
        "num_heads": 6,
        "head_dim": 32,
        "n_groups": 2,
        "layer_norm_epsilon": 1e-5,
        "time_step_limit": [0.0, float("inf")],
        "time_step_rank": 5,
        "chunk_size": 16,
        "tie_word_embeddings": True,
    },
    "recurrent_gemma": {
        **{key: value for key, value in SIZES.items() if key != "max_position_embeddings"},
        **THETA,
        "num_hidden_layers": 3,
        "head_dim": 16,
        "lru_width": 96,
        "attention_window_size": 9,
        "conv1d_width": 3,
        "logits_soft_cap": 20.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "partial_rotary_factor": 0.75,
        "block_types": ["attention", "recurrent"],
        "attention_bias": True,
        "w_init_variance_scale": 0.02,
        "tie_word_embeddings": False,
        "embeddings_scale_by_sqrt_dim": True,
    },
    "recurrent_gemma_new": {
        **{key: value for key, value in SIZES.items() if key != "max_position_embeddings"},
        "rope_parameters": {**THETA, "rope_type": "default", "partial_rotary_factor": 0.25},
        "final_w_init_variance_scale": 0.5,
    },
    "xlstm": {
        "vocab_size": 131,
        "hidden_size": 128,
        "embedding_dim": 128,
        "num_hidden_layers": 2,
        "num_blocks": 2,
        "num_heads": 4,
        "use_bias": False,
        "norm_reduction_force_float32": False,
        "tie_word_embeddings": True,
        "add_out_norm": True,
        "norm_eps": 1e-6,
        "qk_dim_factor": 0.25,
        "v_dim_factor": 0.75,
        "chunk_size": 16,
        "return_last_states": False,
        "autocast_kernel_dtype": "float32",
        "eps": 1e-6,
        "inference_state_dtype": "bfloat16",
        "ffn_proj_factor": 1.5,
        "ffn_round_up_to_multiple_of": 32,
        "gate_soft_cap": 10.0,
        "output_logit_soft_cap": 20.0,
        "weight_mode": "single",
        "max_inference_chunksize": 64,
    },
}


def model_type(name: str) -> str:
    """The `model_type` of a name above."""
    kinds = ("recurrent_gemma", "gemma3_text", "qwen2_moe", "qwen3_moe", name.split("_")[0])
    return next(kind for kind in kinds if name.startswith(kind))


def keys(name: str) -> list[tuple[str, ...]]:
    """Every key of a name above, those of its RoPE sections among them, as paths."""
    return _paths(CONFIGS[name])


def _paths(section: Json) -> list[tuple[str, ...]]:
    inner = [
        (key, *path)
        for key, value in section.items()
        if isinstance(value, dict)
        for path in _paths(value)
    ]
    return [(key,) for key in section] + inner
