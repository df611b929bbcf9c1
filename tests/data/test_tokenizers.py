import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from jaxformer.config import DataConfig
from jaxformer.data.commands import train_tokenizer
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError

TEXTS = [
    "",
    "plain",
    "naïve 日本語 🎉",
    "tab\tand\r\nline\n",
    " the cat ",
    "a\x00b",
    "<|endoftext|>",
]


def word_level(tokens: list[str], **options: object) -> bytes:
    model = models.WordLevel(
        {token: index for index, token in enumerate(tokens)}, unk_token="<unk>"
    )
    definition = tokenizers.Tokenizer(model)
    for name, value in options.items():
        setattr(definition, name, value)
    return definition.to_str().encode()


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_their_own_ids(text: str) -> None:
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (257, 256, 256)


def test_bytes_decode_replaces_invalid_utf8_and_drops_the_end_of_text() -> None:
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.decode([256, 104, 0xE9, 105, 256]) == "h\ufffdi"
    assert tokenizer.count_bytes([256, 104, 0xE9, 105, 256]) == 3


@pytest.mark.parametrize("text", TEXTS)
def test_documents_round_trip_through_byte_level_bpe(text: str, bpe: HuggingFaceTokenizer) -> None:
    [ids] = bpe.encode_documents([text])
    assert bpe.decode(ids) == text
    assert bpe.count_bytes(ids) == len(text.encode())


def test_special_tokens_count_in_a_prompt_and_are_plain_text_in_a_document(
    bpe: HuggingFaceTokenizer,
) -> None:
    text = "the<|endoftext|>cat"
    assert bpe.eos_id in bpe.encode(text)
    assert bpe.eos_id not in bpe.encode_documents([text])[0]
    assert bpe.decode(bpe.encode(text)) == "thecat"


def test_trained_bpe_merges_what_is_frequent(bpe: HuggingFaceTokenizer, bpe_folder: Path) -> None:
    assert 257 < bpe.vocab_size <= 300
    assert bpe.bos_id == bpe.eos_id == 0
    assert len(bpe.encode("the cat sat on the mat")) <= 6
    assert load_tokenizer(str(bpe_folder / "tokenizer.json")).fingerprint == bpe.fingerprint


def test_begin_and_end_of_text_come_from_the_configuration_file(
    bpe_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(bpe_folder, folder)
    config = {"bos_token": {"content": "a"}, "eos_token": "b"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.bos_id == tokenizer.encode("a")[0]
    assert tokenizer.eos_id == tokenizer.encode("b")[0]
    assert tokenizer.fingerprint != load_tokenizer(str(bpe_folder)).fingerprint
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<nothing>"}')
    with pytest.raises(UserError, match=r"names eos_token '<nothing>', which is not in the voc"):
        load_tokenizer(str(folder))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json is not JSON: "):
        load_tokenizer(str(folder))


def test_begin_and_end_of_text_are_found_by_known_names() -> None:
    tokenizer = HuggingFaceTokenizer("t", word_level(["<unk>", "</s>", "x", "<s>"]), {})
    assert (tokenizer.bos_id, tokenizer.eos_id) == (3, 1)
    without_bos = HuggingFaceTokenizer("t", word_level(["<unk>", "</s>"]), {})
    assert without_bos.bos_id == without_bos.eos_id == 1
    with pytest.raises(UserError, match=r"no eos_token in tokenizer_config.json, .* none of <\|"):
        HuggingFaceTokenizer("t", word_level(["<unk>", "x"]), {})


def test_the_vocabulary_reaches_beyond_its_largest_id() -> None:
    model = models.WordLevel({"<unk>": 0, "</s>": 9}, unk_token="<unk>")
    tokenizer = HuggingFaceTokenizer("t", tokenizers.Tokenizer(model).to_str().encode(), {})
    assert tokenizer.vocab_size == 10


def test_truncation_and_padding_of_the_file_are_not_applied(bpe_folder: Path) -> None:
    definition = tokenizers.Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    definition.enable_truncation(max_length=4)
    definition.enable_padding(length=8)
    tokenizer = HuggingFaceTokenizer("t", definition.to_str().encode(), {})
    assert tokenizer.decode(tokenizer.encode("xyzxyzxyz")) == "xyzxyzxyz"
    assert len(tokenizer.encode_documents(["x", "y" * 50])[0]) == 1


def test_streamed_text_equals_text_decoded_at_once_and_has_no_broken_characters(
    bpe: HuggingFaceTokenizer,
) -> None:
    for tokenizer in (load_tokenizer("bytes"), bpe):
        for text in TEXTS:
            ids = [*tokenizer.encode_documents([text])[0].tolist(), tokenizer.eos_id]
            decoder = tokenizer.stream_decoder()
            pieces = [decoder.push(token) for token in ids]
            assert "\ufffd" not in "".join(pieces)
            assert "".join(pieces) + decoder.finish() == text


def test_streamed_noise_equals_noise_decoded_at_once(bpe: HuggingFaceTokenizer) -> None:
    rng = random.Random(0)
    metaspace = word_level(
        ["<unk>", "</s>", "▁the", "▁cat", "s"], decoder=decoders.Metaspace(prepend_scheme="always")
    )
    for tokenizer in (load_tokenizer("bytes"), bpe, HuggingFaceTokenizer("t", metaspace, {})):
        for _ in range(200):
            ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(12))]
            decoder = tokenizer.stream_decoder()
            pieces = [decoder.push(token) for token in ids]
            assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids)


def test_a_missing_tokenizer_is_named(tmp_path: Path, bpe_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file .*empty/tokenizer.json; allowed: bytes, ids:N"):
        load_tokenizer(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"no file .* Did you mean 'tokenizer.json'\?"):
        load_tokenizer(str(bpe_folder / "tokeniser.json"))
    with pytest.raises(UserError, match=r"'byte': no such file .* the Hub .* mean 'bytes'\?"):
        load_tokenizer("byte")
    (tmp_path / "bad.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match=r"bad.json': not a tokenizer.json: "):
        load_tokenizer(str(tmp_path / "bad.json"))


def test_a_hub_name_is_read_from_what_was_downloaded(
    tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    repository = tmp_path / "models--someone--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    shutil.copytree(bpe_folder, snapshot)
    with pytest.raises(UserError, match=r"'someone/small': its tokenizer_config.json cannot be"):
        load_tokenizer("someone/small")
    (snapshot / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    tokenizer = load_tokenizer("someone/small")
    assert tokenizer.eos_id == tokenizer.encode("b")[0]


def test_training_a_tokenizer_refuses_what_it_cannot_do(tmp_path: Path, bpe_folder: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.txt").write_text("")
    data = DataConfig(source=f"text:{tmp_path}/a.txt")
    with pytest.raises(UserError, match=r"tokenizer.json' exists; choose another place"):
        train_tokenizer(data, bpe_folder, 300)
    with pytest.raises(UserError, match=r"vocab_size 256 is too small; allowed: at least 257"):
        train_tokenizer(data, tmp_path / "out", 256)
    with pytest.raises(UserError, match=r"holds no text to train a tokenizer on"):
        train_tokenizer(DataConfig(source=f"text:{tmp_path}/empty.txt"), tmp_path / "out", 300)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_can_be_trained_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text text text")
    train_tokenizer(DataConfig(source=f"text:{tmp_path}/a.txt"), tmp_path / "mine.json", 258)
    tokenizer = load_tokenizer(str(tmp_path / "mine.json"))
    assert tokenizer.vocab_size == 258
    assert [entry.name for entry in tmp_path.iterdir() if "mine" in entry.name] == ["mine.json"]


def test_a_normalizer_of_the_file_is_kept() -> None:
    definition = word_level(["<unk>", "</s>", "abc"], normalizer=normalizers.Lowercase())
    assert HuggingFaceTokenizer("t", definition, {}).encode("ABC").tolist() == [2]
