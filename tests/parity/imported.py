"""Small models of every family that can be imported, as transformers configures them."""

import transformers

VOCAB = 131
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": VOCAB - 1,
    "pad_token_id": None,
}

RECURRENT = {
    key: SIZES[key]
    for key in ("vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "pad_token_id")
} | {"num_hidden_layers": 2, "initializer_range": 0.02}


def llama(scaling: dict | None = None, **options) -> transformers.PreTrainedConfig:
    rope = {"rope_theta": 10000.0, "rope_type": "default", **(scaling or {})}
    return transformers.LlamaConfig(
        **{**SIZES, "rms_norm_eps": 1e-5, **options, "rope_parameters": rope}
    )


def factors(first: float) -> list[float]:
    """Of LongRoPE: one for each of 8 pairs."""
    return [first + 0.25 * pair for pair in range(8)]


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": factors(1.0),
    "long_factor": factors(2.0),
    "original_max_position_embeddings": 64,
}

DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # Of heads much smaller, transformers' own float32 logits are off by 1e-4 from its float64 ones.
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}
LATENT = {
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "kv_lora_rank": 20,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
KIMI = {
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "kv_lora_rank": 20,
    "linear_num_heads": 4,
    "linear_head_dim": 24,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.7,
}

MODELS = {
    "llama": llama(),
    "llama_biases": llama(attention_bias=True, mlp_bias=True, head_dim=8),
    "llama_linear": llama({"rope_type": "linear", "factor": 4.0}),
    "llama_dynamic": llama({"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=32),
    "llama_yarn": llama(
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    ),
    "llama_yarn_deepseek": llama(
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "truncate": False,
        }
    ),
    "llama_llama3": llama(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    ),
    "llama_longrope": llama(LONGROPE),
    "smollm": llama(tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=9),
    "mistral_without_window": transformers.MistralConfig(
        **{**SIZES, "num_key_value_heads": 4}, sliding_window=None
    ),
    "qwen2": transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "gemma": transformers.GemmaConfig(**{**SIZES, "num_key_value_heads": 1}, head_dim=24),
    "gemma2": transformers.Gemma2Config(
        **{**SIZES, "num_hidden_layers": 3},
        head_dim=24,
        sliding_window=9,
        query_pre_attn_scalar=20,
    ),
    "gemma2_without_caps": transformers.Gemma2Config(
        **{**SIZES, "num_hidden_layers": 3},
        head_dim=16,
        sliding_window=9,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        tie_word_embeddings=False,
    ),
    "gemma3_text": transformers.Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 4},
        head_dim=24,
        sliding_window=9,
        query_pre_attn_scalar=20,
        sliding_window_pattern=3,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        rope_local_base_freq=100.0,
    ),
    "gemma3_text_capped": transformers.Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        sliding_window=9,
        layer_types=["full_attention", "sliding_attention"],
        final_logit_softcapping=20.0,
        tie_word_embeddings=False,
    ),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=6, sliding_window=9),
    "qwen2_moe": transformers.Qwen2MoeConfig(
        **{**SIZES, "num_hidden_layers": 3},
        num_experts=6,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        decoder_sparse_step=2,
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SIZES,
        head_dim=8,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        mlp_only_layers=[0],
        norm_topk_prob=True,
    ),
    "olmoe": transformers.OlmoeConfig(
        **{**SIZES, "intermediate_size": 24}, num_experts=6, num_experts_per_tok=2
    ),
    "qwen3_next": transformers.Qwen3NextConfig(
        **{**SIZES, "num_hidden_layers": 5},
        **DELTA,
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    ),
    "qwen3_next_dense_layers": transformers.Qwen3NextConfig(
        **{**SIZES, "num_hidden_layers": 4},
        **{**DELTA, "linear_num_key_heads": 4},
        head_dim=16,
        mlp_only_layers=[0, 1, 3],
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        layer_types=["full_attention", "linear_attention"] * 2,
        norm_topk_prob=False,
        tie_word_embeddings=True,
    ),
    "gpt_oss": transformers.GptOssConfig(
        **SIZES,
        head_dim=16,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=9,
        swiglu_limit=0.5,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 8.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
    ),
    "deepseek_v2": transformers.DeepseekV2Config(
        **SIZES | LATENT,
        q_lora_rank=None,
        topk_method="group_limited_greedy",
        n_group=3,
        topk_group=2,
        routed_scaling_factor=1.5,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 8.0,
            "mscale": 0.7,
            "mscale_all_dim": 0.9,
            "original_max_position_embeddings": 32,
        },
    ),
    "deepseek_v3": transformers.DeepseekV3Config(
        **SIZES | LATENT | {"num_hidden_layers": 3}, q_lora_rank=24, n_group=3, topk_group=2
    ),
    "kimi_linear": transformers.KimiLinearConfig(
        **{**SIZES, "num_hidden_layers": 5, "num_key_value_heads": 4}, **KIMI
    ),
    "kimi_linear_groups": transformers.KimiLinearConfig(
        **{**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 4},
        **KIMI,
        q_lora_rank=24,
        layer_types=["full_attention"] * 2 + ["linear_attention"] * 2,
        first_k_dense_replace=2,
        n_group=3,
        topk_group=2,
        n_shared_experts=2,
        norm_topk_prob=False,
    ),
    "jamba": transformers.JambaConfig(
        **{**SIZES, "num_hidden_layers": 5},
        attn_layer_period=3,
        attn_layer_offset=1,
        num_experts=6,
        num_experts_per_tok=3,
        mamba_d_state=8,
        mamba_dt_rank=5,
    ),
    "jamba_dense": transformers.JambaConfig(
        **{**SIZES, "num_hidden_layers": 3},
        attn_layer_offset=1,
        num_experts=1,
        tie_word_embeddings=True,
    ),
    "olmo2": transformers.Olmo2Config(**SIZES),
    "olmo3": transformers.Olmo3Config(**{**SIZES, "num_hidden_layers": 4}, sliding_window=9),
    "olmo3_yarn": transformers.Olmo3Config(
        **{**SIZES, "num_hidden_layers": 5},
        sliding_window=9,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 1.2,
        },
    ),
    "smollm3": transformers.SmolLM3Config(**{**SIZES, "num_hidden_layers": 5}),
    "smollm3_windows": transformers.SmolLM3Config(
        **{**SIZES, "num_hidden_layers": 3},
        no_rope_layers=[0, 1, 1],
        use_sliding_window=True,
        sliding_window=9,
        mlp_bias=True,
    ),
    "granite": transformers.GraniteConfig(**SIZES, **MULTIPLIERS, tie_word_embeddings=True),
    "granite_biases": transformers.GraniteConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "granitemoe": transformers.GraniteMoeConfig(
        **{**SIZES, "intermediate_size": 24},
        **MULTIPLIERS,
        num_local_experts=6,
        num_experts_per_tok=3,
        tie_word_embeddings=True,
    ),
    "ministral": transformers.MinistralConfig(
        **{**SIZES, "num_hidden_layers": 4},
        head_dim=8,
        sliding_window=9,
        layer_types=["full_attention"] + 3 * ["sliding_attention"],
    ),
    "ministral_all_windows": transformers.MinistralConfig(**SIZES, head_dim=16, sliding_window=9),
    "phi3": transformers.Phi3Config(**SIZES, sliding_window=9, tie_word_embeddings=True),
    "phi3_longrope": transformers.Phi3Config(
        **SIZES,
        original_max_position_embeddings=64,
        rope_parameters={
            **LONGROPE,
            "short_factor": factors(1.0)[:6],
            "long_factor": factors(2.0)[:6],
            "partial_rotary_factor": 0.75,
            "rope_theta": 10000.0,
        },
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=128,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_inner=96,
        bos_token_id=0,
        eos_token_id=VOCAB - 1,
    ),
    "mamba": transformers.MambaConfig(**RECURRENT, state_size=8, time_step_rank=5),
    "mamba2": transformers.Mamba2Config(
        **RECURRENT, num_heads=8, head_dim=16, n_groups=2, state_size=24, chunk_size=16
    ),
    "mamba2_tied": transformers.Mamba2Config(
        **RECURRENT, num_heads=4, head_dim=32, n_groups=1, state_size=8, tie_word_embeddings=True
    ),
    "recurrent_gemma": transformers.RecurrentGemmaConfig(
        **{**RECURRENT, "hidden_size": 80, "num_hidden_layers": 4},  # √80 is rounded to bfloat16
        intermediate_size=192,
        num_attention_heads=4,
        num_key_value_heads=1,
        lru_width=96,
        attention_window_size=9,
    ),
    "xlstm": transformers.xLSTMConfig(
        **{**RECURRENT, "hidden_size": 128},
        num_heads=4,
        chunk_size=16,
        autocast_kernel_dtype="float32",
    ),
}
