"""What a config.json leaves out, or has as null, is what transformers' classes make of it.

The values stand here as numbers; make parity compares them with the classes themselves.
"""

import re
from typing import Any

import pytest

from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.fitting import described, fit
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig

Json = dict[str, Any]

WIDE: Json = {"vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2}
ATTENTION: Json = {**WIDE, "intermediate_size": 96, "num_attention_heads": 32}
MINIMAL: dict[str, Json] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3"), ATTENTION),
    **dict.fromkeys(("ministral", "smollm3", "olmo3", "granite", "granitemoe"), ATTENTION),
    "gemma": {**ATTENTION, "num_attention_heads": 16},
    "gemma2": {**ATTENTION, "num_attention_heads": 16},
    "gemma3_text": {**ATTENTION, "num_attention_heads": 16},
    "gpt2": {"vocab_size": 40, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "mamba": WIDE,
    "mamba2": {**WIDE, "hidden_size": 4096},
    "recurrent_gemma": {**ATTENTION, "num_attention_heads": 4, "num_hidden_layers": 3},
    "xlstm": WIDE,
}


def read(family: str, **keys: Any) -> ModelConfig:
    """The model of a config.json that has its main sizes, and `keys`."""
    section = FAMILIES[family].read({"model_type": family, **MINIMAL[family], **keys})
    return ModelConfig.model_validate(section)


MIXER, POSITIONS = "layers.0.mixer.", "layers.0.positions."
SAID: list[tuple[str, Json, Json]] = [
    ("llama", {}, {MIXER + "num_kv_heads": 32, MIXER + "head_dim": 2, POSITIONS + "base": 10000.0}),
    ("llama", {}, {"tie_embeddings": False, "norm.eps": 1e-6, MIXER + "qkv_bias": False}),
    ("llama", {"rope_parameters": {"rope_theta": 7.0}}, {POSITIONS + "base": 7.0}),
    ("llama", {"rope_scaling": {"rope_theta": 7.0}, "rope_theta": 9.0}, {POSITIONS + "base": 7.0}),
    ("mistral", {}, {MIXER + "num_kv_heads": 8, MIXER + "window": 4096}),
    ("mistral", {"sliding_window": None}, {MIXER + "window": None}),
    ("qwen2", {}, {MIXER + "num_kv_heads": 32, MIXER + "head_dim": 2, POSITIONS + "base": 10000.0}),
    ("qwen3", {}, {MIXER + "head_dim": 128, MIXER + "num_kv_heads": 32}),
    ("gemma", {}, {MIXER + "head_dim": 256, MIXER + "num_kv_heads": 16, "tie_embeddings": True}),
    ("gemma2", {}, {MIXER + "logit_softcap": 50.0, "logit_softcap": 30.0, MIXER + "window": 4096}),
    ("gemma2", {}, {MIXER + "scale": 1 / 16, MIXER + "head_dim": 256, MIXER + "num_kv_heads": 4}),
    (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        {MIXER + "logit_softcap": None, "logit_softcap": None},
    ),
    ("gemma3_text", {}, {MIXER + "window": 4096, MIXER + "qk_norm": True, "logit_softcap": None}),
    ("gemma3_text", {}, {MIXER + "scale": 1 / 16, POSITIONS + "base": 10000.0}),
    (
        "gemma3_text",
        {"sliding_window_pattern": 2},
        {"layers.1.mixer.window": None, "layers.1.positions.base": 1000000.0},
    ),
    ("olmo2", {}, {"norm.eps": 1e-5, MIXER + "qk_norm_eps": 1e-5, "tie_embeddings": False}),
    ("olmo3", {}, {MIXER + "window": 4096, POSITIONS + "base": 500000.0, "norm.eps": 1e-5}),
    ("olmo3", {"num_hidden_layers": 4}, {"layers.2.mixer.window": 4096}),
    ("olmo3", {"num_hidden_layers": 4}, {"layers.3.mixer.window": None}),
    ("smollm3", {}, {MIXER + "num_kv_heads": 4, POSITIONS + "base": 2000000.0}),
    ("smollm3", {"num_hidden_layers": 4}, {"layers.3.positions.kind": "none"}),
    ("smollm3", {"num_key_value_heads": None}, {MIXER + "num_kv_heads": 32}),
    ("granite", {}, {MIXER + "scale": 1.0, "scale_embeddings": 1.0, "logit_scale": 1.0}),
    ("granite", {"logits_scaling": 8}, {"logit_scale": 0.125, "residual.multiplier": 1.0}),
    ("granitemoe", {}, {"layers.0.ffn.num_experts": 8, "layers.0.ffn.experts_per_token": 2}),
    ("granitemoe", {}, {"layers.0.ffn.normalize": True, "layers.0.ffn.d_hidden": 96}),
    ("ministral", {}, {MIXER + "num_kv_heads": 8, "layers.1.mixer.window": 4096}),
    ("ministral", {"sliding_window": None}, {MIXER + "window": None}),
    ("phi3", {}, {"norm.eps": 1e-5, MIXER + "window": None, POSITIONS + "fraction": 1.0}),
    ("gpt2", {}, {"layers.0.ffn.d_hidden": 256, POSITIONS + "max_length": 1024}),
    ("mamba", {}, {MIXER + "state_size": 16, MIXER + "dt_rank": 4, "tie_embeddings": True}),
    ("mamba2", {}, {MIXER + "state_size": 128, MIXER + "head_dim": 64, "tie_embeddings": False}),
    ("recurrent_gemma", {}, {"logit_softcap": 30.0, POSITIONS + "fraction": 0.5}),
    ("recurrent_gemma", {}, {MIXER + "expansion": 1.0, "layers.2.mixer.window": 2048}),
    ("xlstm", {}, {MIXER + "num_heads": 8, MIXER + "key_expansion": 0.5, "logit_softcap": 30.0}),
]


@pytest.mark.parametrize(("family", "keys", "expected"), SAID)
def test_a_key_left_out_has_transformers_default(family: str, keys: Json, expected: Json) -> None:
    found = described(read(family, **keys))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_the_start_of_weights_has_its_default_too(family: str) -> None:
    assert read(family).init.std == 0.1


@pytest.mark.parametrize(
    "family", [each for each in MINIMAL if "initializer_range" in FAMILIES[each].defaults]
)
def test_the_start_of_weights_goes_back_as_it_came(family: str) -> None:
    options, _ = fit(FAMILIES[family], read(family, initializer_range=0.03))
    assert options["initializer_range"] == 0.03


@pytest.mark.parametrize(
    ("family", "longest"),
    [("llama", 2048), ("mistral", 131072), ("qwen3", 32768), ("gemma2", 8192), ("phi3", 4096)],
)
def test_the_longest_row_has_its_default_too(family: str, longest: int) -> None:
    assert read(family).positions.model_dump()["max_length"] == longest


def windows(family: str, **keys: Any) -> list[int | None]:
    return [layer.mixer.model_dump()["window"] for layer in read(family, **keys).layers()]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_window_of_qwen_counts_where_it_is_used_and_in_the_layers_above(family: str) -> None:
    used = {"use_sliding_window": True, "num_hidden_layers": 3}
    assert windows(family, sliding_window=9) == [None, None]
    assert windows(family, sliding_window=9, use_sliding_window=True) == [None, None]
    assert windows(family, sliding_window=9, max_window_layers=2, **used) == [None, None, 9]
    assert windows(family, max_window_layers=0, **used) == [4096, 4096, 4096]
    assert windows(family, max_window_layers=0, sliding_window=None, **used) == [None] * 3
    with pytest.raises(UserError, match="no sliding_window with use_sliding_window true"):
        windows(family, sliding_window=9, layer_types=["full_attention", "sliding_attention"])


def test_smollm3_has_a_window_where_it_has_no_positions_or_as_its_file_says() -> None:
    used = {"use_sliding_window": True, "sliding_window": 9, "no_rope_layer_interval": 2}
    assert windows("smollm3", **used) == [None, 9]
    assert windows("smollm3", **used | {"use_sliding_window": False}) == [None, None]
    types = ["sliding_attention", "full_attention"]
    assert windows("smollm3", **used, layer_types=types) == [9, None]


def test_the_longest_row_of_smollm3_does_not_depend_on_which_layers_have_positions() -> None:
    for layers in ([0, 1], [1, 0], [1, 1]):
        assert read("smollm3", no_rope_layers=layers).longest_row == 32768


@pytest.mark.parametrize("family", ["gemma3_text", "olmo3"])
def test_an_older_files_scaling_is_that_of_layers_with_full_attention(family: str) -> None:
    types = ["full_attention", "sliding_attention"]
    for options in (
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
    ):
        found = described(read(family, layer_types=types, **options))
        assert found["layers.0.positions.scaling.factor"] == 8.0
        assert found["layers.1.positions.scaling"] is None


def test_a_length_of_phi3_beside_its_scaling_goes_before_the_one_in_it() -> None:
    scaling = {
        "type": "longrope",
        "short_factor": [1.0],
        "long_factor": [2.0],
        "original_max_position_embeddings": 32,
    }
    for keys, length in (({}, 4096), ({"original_max_position_embeddings": 64}, 64)):
        found = described(read("phi3", rope_scaling=scaling, **keys))
        assert found[POSITIONS + "scaling.original_max_length"] == length


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("llama", "rms_norm_eps"),
        ("llama", "hidden_size"),
        ("llama", "rope_theta"),
        ("mistral", "num_key_value_heads"),
        ("qwen3", "head_dim"),
        ("gemma2", "query_pre_attn_scalar"),
        ("gemma3_text", "rope_local_base_freq"),
        ("olmo3", "rope_theta"),
        ("smollm3", "no_rope_layer_interval"),
        ("granite", "logits_scaling"),
        ("granitemoe", "num_local_experts"),
        ("phi3", "original_max_position_embeddings"),
        ("gpt2", "n_positions"),
        ("mamba", "time_step_rank"),
        ("mamba2", "time_step_limit"),
        ("recurrent_gemma", "block_types"),
        ("xlstm", "gate_soft_cap"),
    ],
)
def test_null_is_refused_where_transformers_refuses_it(family: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"has ({key} null, which transformers|no '{key}')"):
        read(family, **{key: None})


@pytest.mark.parametrize("family", MINIMAL)
def test_a_file_without_a_main_size_is_refused_by_its_name(family: str) -> None:
    config = {"model_type": family, **MINIMAL[family]}
    for key in MINIMAL[family]:
        rest = {each: value for each, value in config.items() if each != key}
        with pytest.raises(UserError, match=f"has no '{key}', which {family} needs"):
            FAMILIES[family].read(rest)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"factor": 2.0}, "rope_scaling has factor, but no rope_type"),
        ({"rope_type": "llama3", "factor": 2.0}, "rope_scaling has no 'low_freq_factor'"),
        ({"rope_type": "yarn"}, "rope_scaling has no 'factor'"),
        ({"rope_type": None, "type": "linear"}, "rope_scaling has rope_type null"),
    ],
)
def test_a_scaling_without_one_of_its_keys_is_refused(scaling: Json, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read("llama", rope_scaling=scaling)


def test_a_scaling_that_phi3_reads_as_another_is_refused() -> None:
    with pytest.raises(UserError, match="'yarn'; supported: default, longrope, su"):
        read("phi3", rope_scaling={"type": "yarn", "factor": 2.0})


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "olmo2", "phi3"])
def test_a_length_that_a_model_does_not_say_is_not_written_as_null(family: str) -> None:
    model = read(family)
    positions = model.positions.model_copy(update={"max_length": None})
    options, differences = fit(FAMILIES[family], model.model_copy(update={"positions": positions}))
    assert differences == []
    assert "max_position_embeddings" not in options
    assert "original_max_position_embeddings" not in options
