"""Quantised weights become the numbers that they stand for."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import jaxformer as jf
from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.checkpoint.interop.quantized import MXFP4
from jaxformer.checkpoint.interop.table import Table
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from tests.checkpoint.interop.models import CONFIG, llama_tensors, write_model

GPT_OSS = {
    "model_type": "gpt_oss",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "attention_bias": False,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [8, 16]}
MATRIX = "model.layers.1.mlp.down_proj.weight"  # [16, 24]: two blocks, the second not full


def test_four_bits_are_a_sign_and_a_magnitude_and_the_lower_ones_come_first() -> None:
    numbers = np.zeros((1, 2, 1, 16), np.uint8)
    numbers[0, 0, 0, :3] = [0x21, 0xF7, 0x98]
    numbers[0, 1, 0, 15] = 0x63
    values = MXFP4().values(numbers, np.array([[[127], [129]]], np.uint8))
    assert values.shape == (1, 32, 2)
    assert values[0, :6, 0].tolist() == [0.5, 1.0, 6.0, -6.0, -0.0, -0.5]
    assert values[0, 30:, 1].tolist() == [6.0, 16.0]
    assert np.count_nonzero(values[0, 6:, 0]) == np.count_nonzero(values[0, :30, 1]) == 0


def tensors_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """All of a family's tensors, random."""
    family = FAMILIES[config["model_type"]]
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    table = Table(family, ModelConfig.model_validate(family.read(plain)))
    random = np.random.default_rng(0)
    shapes = {name: at for rule in table.rules for name, at in table.stored(rule).items()}
    return {name: random.normal(0, 0.3, shape).astype("f4") for name, shape in shapes.items()}


def test_experts_of_four_bits_are_imported(tmp_path: Path) -> None:
    tensors, random, expected = tensors_of(GPT_OSS), np.random.default_rng(1), {}
    for name in [name for name in tensors if name.endswith("_proj")]:
        experts, inputs, outputs = tensors.pop(name).shape
        numbers = random.integers(0, 256, (experts, outputs, inputs // 32, 16)).astype(np.uint8)
        scales = random.integers(120, 130, numbers.shape[:3]).astype(np.uint8)
        tensors |= {f"{name}_blocks": numbers, f"{name}_scales": scales}
        expected[name] = MXFP4().values(numbers, scales)
    import_model(
        HuggingFaceFolder(write_model(tmp_path / "model", GPT_OSS, tensors)), tmp_path / "run"
    )
    layers = jf.load(tmp_path / "run").params["stack"]["groups"]
    for layer in range(2):
        ffn, name = layers[f"layer_{layer}"]["ffn"], f"model.layers.{layer}.mlp.experts."
        both = expected[name + "gate_up_proj"]
        np.testing.assert_array_equal(ffn["experts_gate"]["kernel"][0], both[..., 0::2])
        np.testing.assert_array_equal(ffn["experts_in"]["kernel"][0], both[..., 1::2])
        np.testing.assert_array_equal(ffn["experts_out"]["kernel"][0], expected[name + "down_proj"])


def in_eight_bits(scale_shape: tuple[int, int] = (2, 2)) -> dict[str, np.ndarray]:
    """The tensors of a Llama, with one matrix in float8."""
    tensors = llama_tensors()
    tensors[MATRIX] = (100 * tensors[MATRIX]).astype(ml_dtypes.float8_e4m3fn)
    scales = np.arange(1, 1 + np.prod(scale_shape), dtype=np.float32).reshape(scale_shape) / 3
    return tensors | {f"{MATRIX}_scale_inv": scales}


def test_blocks_of_eight_bits_are_multiplied_by_their_scales(tmp_path: Path) -> None:
    tensors = in_eight_bits()
    folder = write_model(tmp_path / "model", {**CONFIG, "quantization_config": FP8}, tensors)
    import_model(HuggingFaceFolder(folder), tmp_path / "run")
    kernel = jf.load(tmp_path / "run").params["stack"]["groups"]["layer_0"]["ffn"]["out"]["kernel"]
    scales, numbers = tensors[f"{MATRIX}_scale_inv"], tensors[MATRIX].astype(np.float32)
    for row in range(16):
        for column in range(24):
            expected = numbers[row, column] * scales[row // 8, column // 16]
            assert kernel[1, column, row] == expected


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        ({"quant_method": "gptq"}, in_eight_bits(), "are not read; supported: fp8, mxfp4"),
        ({"weight_block_size": None}, in_eight_bits(), "weight_block_size None; allowed: two"),
        ({}, in_eight_bits((2, 3)), "down_proj.weight, float8_e4m3fn [16, 24], and model"),
        (
            {},
            in_eight_bits() | {f"{MATRIX}_scale_inv": np.full((2, 2), 127, np.uint8)},
            "down_proj.weight_scale_inv, uint8 [2, 2], which do not fit",
        ),
        (
            {},
            llama_tensors() | {f"{MATRIX[:-7]}s.weight_scale_inv": np.ones((1, 1), np.float32)},
            "down_projs.weight_scale_inv, but no model.layers.1.mlp.down_projs.weight",
        ),
    ],
    ids=["another method", "no blocks", "other blocks", "bytes as scales", "scales alone"],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, changes: dict, tensors: dict, message: str
) -> None:
    config = {**CONFIG, "quantization_config": FP8 | changes}
    folder = write_model(tmp_path / "model", config, tensors)
    with pytest.raises(UserError) as error:
        import_model(HuggingFaceFolder(folder), tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_tensor_in_both_forms_is_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    packed = {
        f"{name}_blocks": np.zeros((3, 32, 2, 16), np.uint8),
        f"{name}_scales": np.zeros((3, 32, 2), np.uint8),
    }
    folder = write_model(tmp_path / "model", GPT_OSS, tensors_of(GPT_OSS) | packed)
    with pytest.raises(UserError, match="has .*down_proj as well as .*down_proj_blocks; keep one"):
        import_model(HuggingFaceFolder(folder), tmp_path / "run")
