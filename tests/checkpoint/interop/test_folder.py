"""What a folder of weights may not be."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxformer.checkpoint.interop.folder import INDEX, HuggingFaceFolder
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from tests.checkpoint.interop.models import (
    CONFIG,
    llama_tensors,
    write_model,
    write_raw,
    write_tensors,
)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        HuggingFaceFolder(folder)
    return str(error.value)


def sharded(folder: Path) -> dict[str, str]:
    """The model in two files; returns the index's map."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    tensors = llama_tensors()
    names = list(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for shard, held in shards.items():
        write_tensors(folder / shard, {name: tensors[name] for name in held})
    index = {name: shard for shard, held in shards.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return index


def test_tensors_come_one_by_one_and_as_they_were(tmp_path: Path) -> None:
    tensors = llama_tensors()
    source = HuggingFaceFolder(write_model(tmp_path))
    assert source.config == CONFIG
    assert list(source.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert source.tensors[name] == (tensor.shape, "float32")
        np.testing.assert_array_equal(source.read(name), tensor)


def test_shards_are_found_by_the_index(tmp_path: Path) -> None:
    assert sharded(tmp_path).keys() == HuggingFaceFolder(tmp_path).tensors.keys()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    message = refusal(tmp_path)
    assert name in message
    assert "a pickle" in message
    assert "save_pretrained" in message


LIES = {
    "overlap": ([[0, 16], [8, 24]], "invalid offset for tensor `b`"),
    "gap": ([[0, 16], [20, 36]], "invalid offset for tensor `b`"),
    "longer": ([[0, 16], [16, 36]], "invalid shape, data type, or offset"),
    "negative": ([[-16, 0], [0, 16]], "integer `-16`, expected usize"),
    "beyond": ([[0, 16], [16, 32]], "file not fully covered"),
}


@pytest.mark.parametrize("name", LIES)
def test_offsets_that_do_not_add_up_are_refused(tmp_path: Path, name: str) -> None:
    write_model(tmp_path)
    offsets, expected = LIES[name]
    header = {
        tensor: {"dtype": "F32", "shape": [4], "data_offsets": place}
        for tensor, place in zip("ab", offsets, strict=True)
    }
    body = bytes(24 if name in ("overlap", "beyond") else offsets[1][1])
    write_raw(tmp_path / "model.safetensors", json.dumps(header), body)
    message = refusal(tmp_path)
    assert expected in message
    assert "model.safetensors is damaged" in message


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('{"a": {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}}', "unknown variant `F31`"),
        (
            '{"a": {"dtype": "F64", "shape": [4], "data_offsets": [0, 16]}}',
            "invalid shape, data type, or offset",
        ),
        (
            '{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}',
            "integer `-4`, expected usize",
        ),
        (
            '{"a": {"dtype": "F32", "shape": [2.0, 2], "data_offsets": [0, 16]}}',
            "floating point `2.0`, expected usize",
        ),
        ('{"a": {"dtype": "F32", "shape": [4]}}', "missing field `data_offsets`"),
        ('{"a": 1}', "invalid type: integer `1`"),
        ("[1, 2]", "invalid type: sequence"),
        ("{", "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        ("{}", "file not fully covered"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: str, expected: str) -> None:
    write_model(tmp_path)
    write_raw(tmp_path / "model.safetensors", header, bytes(16))
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8, b"\xff\xff\xff\x00\x00\x00\x00\x00"])
def test_a_file_shorter_than_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "damaged or no safetensors file" in refusal(tmp_path)


def test_a_pointer_of_git_lfs_is_told_how_to_get_the_weights(tmp_path: Path) -> None:
    write_model(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert "run git lfs pull" in refusal(tmp_path)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a/../../b", "..\\b"])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    index = sharded(folder)
    write_tensors(tmp_path / "outside.safetensors", llama_tensors())
    index["lm_head.weight"] = shard
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    assert f"names the file '{shard}'; allowed: files inside" in refusal(folder)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert "is a link to" in refusal(folder)
    assert HuggingFaceFolder(folder, root=tmp_path).tensors  # as in the Hub's cache


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert f"{tmp_path / 'b.safetensors'} is missing" in refusal(tmp_path)


def test_an_index_that_differs_from_its_files_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**index, "x": "a.safetensors"}}))
    assert "'x' of a.safetensors is not in the file" in refusal(tmp_path)
    index.pop("lm_head.weight")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    assert "'lm_head.weight' of b.safetensors is not in the index" in refusal(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    assert "has no weight_map" in refusal(tmp_path)


def test_a_folder_without_weights_or_configuration_says_so(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "has no *.safetensors file" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json is missing" in refusal(tmp_path)


def test_the_chat_template_joins_the_tokenizers_configuration(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert HuggingFaceFolder(folder).write_tokenizer(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written == {"eos_token": "<eos>", "chat_template": "{{ messages }}"}


def test_ends_of_text_that_other_files_name_come_along(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "<eos>"}}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    out = tmp_path / "out"
    out.mkdir()
    assert HuggingFaceFolder(folder).write_tokenizer(out)
    assert load_tokenizer(str(out)).eos_id == load_tokenizer(str(folder)).eos_id == 7
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "eos_token_id": 9}))
    assert HuggingFaceFolder(folder).write_tokenizer(out)
    assert load_tokenizer(str(out)).eos_id == load_tokenizer(str(folder)).eos_id == 9
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written["pad_token"] == {"content": "<eos>"}
