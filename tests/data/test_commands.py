from pathlib import Path

import pytest

from jaxformer.config import Config
from jaxformer.data import commands
from jaxformer.data import store as store_module
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError

MODEL = {
    "d_model": 8,
    "num_layers": 1,
    "mixer": {"kind": "attention", "num_heads": 1},
    "ffn": {"kind": "swiglu", "d_hidden": 8},
}


@pytest.fixture
def config(make_data, write_texts) -> Config:
    texts = [f"def f{n}():\n    return [{n}]\n" for n in range(20)]
    data = make_data(source=write_texts(texts), sequence_length=32, validation_fraction=0.2)
    return Config.model_validate({"model": MODEL, "data": data.model_dump()})


def test_prepare_makes_the_stores_and_says_what_they_hold(config: Config, capfd) -> None:
    commands.prepare(config)
    err = capfd.readouterr().err
    assert "20 documents, 560 tokens in " in err
    assert "448 tokens, 14 rows of 32 to train on" in err
    assert "112 tokens, 4 rows of 32 to validate on" in err
    commands.prepare(config)
    assert "documents" not in capfd.readouterr().err


def test_inspect_prints_a_table_and_a_row_of_each_store(
    config: Config, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    commands.inspect(config)
    out = capsys.readouterr().out
    [part] = Stores(config.data, load_tokenizer("bytes")).training
    digest = part.store.manifest.sha256
    for line in (
        "│ documents           │ 20 ",
        "│ left out            │ nothing ",
        "│ tokens              │ 560 (uint16, bytes) ",
        "│ bytes of text       │ 520 ",
        "│ bytes per token     │ 0.929 ",
        "│ tokens per document │ 27 27 28 29 29 (quantiles 0.05 0.25 0.5 0.75 0.95) ",
        f"│ sha256              │ {digest} ",
        "│ training            │ 448 tokens, 14 rows of 32 ",
        "│ validation          │ 112 tokens, 4 rows of 32 ",
        "row 0: 2 document(s), 31 of 32 targets in the loss",
        "  |     return [0]",
    ):
        assert line in out


def test_inspect_refuses_a_large_store_whose_hash_differs(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "HASHED_ON_OPENING", 0)
    [part] = Stores(config.data, load_tokenizer("bytes")).training
    place = part.store.place / "00000-000.tokens"
    content = bytearray(place.read())
    content[2] ^= 1
    place.write(bytes(content))
    with pytest.raises(
        UserError, match=r"00000-000.tokens does not have the hash of the index. Rem"
    ):
        commands.inspect(config)


def test_a_trained_tokenizer_prepares_a_store(config: Config, tmp_path: Path, capfd) -> None:
    commands.train_tokenizer(config.data, tmp_path / "tokenizer", 270)
    assert "tokenizer of 270 ids: data.tokenizer=" in capfd.readouterr().err
    data = config.data.model_copy(update={"tokenizer": str(tmp_path / "tokenizer")})
    commands.prepare(config.model_copy(update={"data": data}))
    [part] = Stores(data, load_tokenizer(data.tokenizer)).training
    assert part.store.manifest.tokens < 560
    assert part.store.manifest.text_bytes == 520


def test_training_a_tokenizer_says_when_the_text_is_too_small(
    config: Config, tmp_path: Path, capfd
) -> None:
    commands.train_tokenizer(config.data, tmp_path / "tokenizer", 5000)
    assert "ids, fewer than vocab_size 5000: no more pairs to merge" in capfd.readouterr().err
