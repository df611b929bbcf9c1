"""From a folder of weights to a run."""

import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import jaxformer as jf
from jaxformer.checkpoint.interop import checkpoint_files
from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.cli import main
from jaxformer.errors import UserError
from tests.checkpoint.interop.models import (
    CONFIG,
    VOCAB,
    as_bfloat16,
    llama_tensors,
    write_model,
)
from tests.runs import assert_same_arrays, saved_arrays


def refusal(folder: Path, **changes: Any) -> str:
    """What is said to a model with other options or `tensors`; nothing may be left of it."""
    tensors = changes.pop("tensors", None)
    write_model(folder / "model", {**CONFIG, **changes}, tensors or llama_tensors())
    with pytest.raises(UserError) as error:
        import_model(HuggingFaceFolder(folder / "model"), folder / "run")
    assert [each.name for each in folder.iterdir()] == ["model"]
    return str(error.value)


def test_an_imported_model_is_a_run_with_the_same_numbers(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    assert main(["import", str(source), str(tmp_path / "run")]) == 0
    run = jf.load(tmp_path / "run")
    tensors = llama_tensors()
    np.testing.assert_array_equal(run.params["embedding"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(run.params["head"], tensors["lm_head.weight"].T)
    layers = run.params["stack"]["groups"]["layer_0"]
    for index in range(3):
        at = f"model.layers.{index}"
        np.testing.assert_array_equal(
            layers["mixer"]["key"]["kernel"][index].reshape(16, 8),
            tensors[f"{at}.self_attn.k_proj.weight"].T,
        )
        np.testing.assert_array_equal(
            layers["mixer"]["output"]["kernel"][index].reshape(16, 16),
            tensors[f"{at}.self_attn.o_proj.weight"].T,
        )
        np.testing.assert_array_equal(
            layers["ffn_norm"]["scale"][index],
            tensors[f"{at}.post_attention_layernorm.weight"],
        )
    assert run.step == 0
    assert run.config.model.positions.base == 500000.0
    assert run.config.data.tokenizer == str(tmp_path / "run" / "tokenizer")
    assert isinstance(run.generate("abc", max_new_tokens=4), str)


def test_arrays_lie_in_pieces_of_a_layer_or_of_some_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = HuggingFaceFolder(write_model(tmp_path / "model"))
    import_model(source, tmp_path / "whole")
    monkeypatch.setattr(checkpoint_files, "PIECE", 16 * 4 * 16)  # sixteen rows of the embedding
    import_model(source, tmp_path / "pieces")
    for run, count in (("whole", 1), ("pieces", 20)):  # 15 rows divide 300
        arrays = tmp_path / run / "checkpoints/0/params"
        assert len(list((arrays / "embedding").glob("[0-9]*"))) == count
    assert_same_arrays(saved_arrays(tmp_path / "whole", 0), saved_arrays(tmp_path / "pieces", 0))
    assert [checkpoint_files._divisor(*each) for each in ((300, 16), (301, 16), (7, 9))] == [
        15,
        7,
        7,
    ]
    assert checkpoint_files._divisor(50261, 4000) == 50261  # a prime: no file for each row


def test_half_precision_becomes_float32_exactly(tmp_path: Path) -> None:
    halves = as_bfloat16(llama_tensors())
    wide = {name: tensor.astype(np.float32) for name, tensor in halves.items()}
    for name, tensors in (("half", halves), ("wide", wide)):
        source = write_model(tmp_path / f"{name}_source", CONFIG, tensors)
        import_model(HuggingFaceFolder(source), tmp_path / name)
    arrays = saved_arrays(tmp_path / "half", 0)
    assert {array.dtype.name for array in arrays.values()} == {"float32"}
    assert_same_arrays(arrays, saved_arrays(tmp_path / "wide", 0))


def test_a_tensor_is_read_once_and_at_most_one_other_is_there_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = HuggingFaceFolder(write_model(tmp_path / "model"))
    tensors: list[weakref.ref[np.ndarray]] = []
    names = []

    def read(self: HuggingFaceFolder, name: str) -> np.ndarray:
        deadline = time.monotonic() + 10  # the writing thread lets go of one a moment later
        while sum(tensor() is not None for tensor in tensors) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        tensor = llama_tensors()[name]
        tensors.append(weakref.ref(tensor))
        names.append(name)
        return tensor

    monkeypatch.setattr(HuggingFaceFolder, "read", read)
    import_model(source, tmp_path / "run")
    assert names == list(source.tensors)


def test_buffers_and_a_copy_of_a_tied_head_are_left_out(tmp_path: Path) -> None:
    config = {**CONFIG, "tie_word_embeddings": True}
    tensors = llama_tensors(config)
    frequencies = np.ones(2, np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = frequencies
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    import_model(
        HuggingFaceFolder(write_model(tmp_path / "model", config, tensors)), tmp_path / "run"
    )
    assert "params['head']" not in saved_arrays(tmp_path / "run", 0)


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    tensors = llama_tensors()
    message = refusal(tmp_path, tie_word_embeddings=True, tensors=tensors)
    assert "lm_head.weight differs from model.embed_tokens.weight" in message


def test_an_unknown_family_is_answered_with_the_nearest_and_the_list(tmp_path: Path) -> None:
    message = refusal(tmp_path, model_type="lama")
    assert "model_type 'lama'" in message
    assert f"families: {', '.join(FAMILIES)}." in message
    assert "Did you mean 'llama'?" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"hidden_act": "relu"},
            "hidden_act 'relu', which is not supported for llama; allowed: 's",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4}"),
        ({"attn_temperature_tuning": True}, "attn_temperature_tuning True"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type 'spiral'; supported: default, line"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "x": 1}}, "rope_scaling has opti"),
        ({"hidden_size": None}, "has no 'hidden_size', which llama needs"),
        ({"hidden_size": "16"}, "hidden_size '16'; allowed: a positive whole number"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers 2.5; allowed: a positive whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads 0; allowed: a positive whole number"),
        (
            {"num_attention_heads": 3},
            "num_attention_heads 3, which is not divisible by its",
        ),
        ({"vocab_size": 301}, "shape     model.embed_tokens.weight: [300, 16], not [301, 16]"),
    ],
)
def test_options_that_would_make_another_model_are_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(tmp_path, **changes)


def test_tensors_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.1.self_attn.q_proj.bias"] = np.ones(16, np.float32)
    tensors["model.norms.weight"] = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((24, 15), np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int32)
    message = refusal(tmp_path, tensors=tensors)
    for line in (
        "missing   model.norm.weight Did you mean 'model.norms.weight'?",
        "left over model.layers.1.self_attn.q_proj.bias [16]",
        "left over model.norms.weight [16]",
        "shape     model.layers.0.mlp.up_proj.weight: [24, 15], not [24, 16]",
        "dtype     lm_head.weight: int32; supported: float32, bfloat16, float16",
    ):
        assert line in message


def test_names_may_lack_the_models_prefix(tmp_path: Path) -> None:
    tensors = {name.removeprefix("model."): each for name, each in llama_tensors().items()}
    import_model(
        HuggingFaceFolder(write_model(tmp_path / "short", CONFIG, tensors)), tmp_path / "a"
    )
    import_model(HuggingFaceFolder(write_model(tmp_path / "long")), tmp_path / "b")
    assert_same_arrays(saved_arrays(tmp_path / "a", 0), saved_arrays(tmp_path / "b", 0))


def test_a_used_folder_is_not_written_into(tmp_path: Path) -> None:
    source = HuggingFaceFolder(write_model(tmp_path / "model"))
    with pytest.raises(UserError, match="exists already; give a new folder"):
        import_model(source, tmp_path / "model")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "vocab_size": 20}
    message = refusal(tmp_path, vocab_size=20, tensors=llama_tensors(config))
    assert "its tokenizer has 27 ids, but vocab_size of its config.json is 20" in message


def test_without_a_tokenizer_the_run_has_bytes_and_says_so(tmp_path: Path, capsys) -> None:
    source = write_model(tmp_path / "model")
    (source / "tokenizer.json").unlink()
    import_model(HuggingFaceFolder(source), tmp_path / "run")
    assert "has no tokenizer.json: data.tokenizer" in capsys.readouterr().err
    assert jf.load(tmp_path / "run").config.data.tokenizer == "bytes"
    assert jf.load(tmp_path / "run").model.vocab_size == VOCAB


def test_the_command_refuses_what_is_not_there(tmp_path: Path, capsys) -> None:
    assert main(["import", str(tmp_path / "none"), str(tmp_path / "run")]) == 2
    assert "does not exist; give a folder, or a name on the Hub" in capsys.readouterr().err
    assert main(["import", "nobody/nothing", str(tmp_path / "run")]) == 2
    assert "the Hub gave no such model" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["import", str(tmp_path / "file"), str(tmp_path / "run")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_special_tokens_without_a_row_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As in Gemma 3, whose tokenizer has one for images beyond the embedding."""
    source = write_model(tmp_path / "model")
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens([chr(1000 + index) for index in range(VOCAB - 27)])
    tokenizer.add_special_tokens(["<image>"])
    assert tokenizer.token_to_id("<image>") == VOCAB
    tokenizer.save(str(source / "tokenizer.json"))
    import_model(HuggingFaceFolder(source), tmp_path / "run")
    assert "without a row in the embedding: <image>" in capsys.readouterr().err
    kept = jf.load(tmp_path / "run").tokenizer
    assert kept.vocab_size == VOCAB
    assert list(kept.encode("abc")) == [0, 1, 2]
