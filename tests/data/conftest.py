"""A small corpus, and configurations that keep their stores in the test's own folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jaxformer.config import DataConfig
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.tokenizers import load_tokenizer


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., DataConfig]:
    """A DataConfig of these options."""

    def make(**options: object) -> DataConfig:
        return DataConfig.model_validate({"cache_dir": str(tmp_path / "cache"), **options})

    return make


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[..., str]:
    """Writes texts as files of a folder and gives their source."""

    def write(texts: list[str], folder: str = "texts") -> str:
        directory = tmp_path / folder
        directory.mkdir()
        for number, text in enumerate(texts):
            (directory / f"{number:04}.txt").write_text(text, encoding="utf-8")
        return f"text:{directory}/*.txt"

    return write


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained byte-level BPE tokenizer of 300 ids."""
    from jaxformer.data.commands import train_tokenizer

    folder = tmp_path_factory.mktemp("bpe")
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log\n" * 20, encoding="utf-8")
    train_tokenizer(DataConfig(source=f"text:{text}"), folder / "tokenizer", 300)
    return folder / "tokenizer"


@pytest.fixture
def bpe(bpe_folder: Path) -> HuggingFaceTokenizer:
    tokenizer = load_tokenizer(str(bpe_folder))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


@pytest.fixture
def make_images(make_data: Callable[..., DataConfig]) -> Callable[..., DataConfig]:
    """A DataConfig of pictures of 8 × 8; `images` adds keys of its section."""

    def make(source: object, images: dict[str, object] | None = None, **options: object):
        section = {"size": [8, 8], **(images or {})}
        given = {"kind": "images", "source": source, "images": section, "sequence_length": 4}
        return make_data(**given, **options)

    return make


@pytest.fixture
def make_audio(make_data: Callable[..., DataConfig]) -> Callable[..., DataConfig]:
    """A DataConfig of recordings at 800 Hz with texts, in rows of 16 places of 16 samples; `audio`
    adds keys of its section."""

    def make(source: object, audio: dict[str, object] | None = None, **options: object):
        section = {"sample_rate": 800, "samples_per_place": 16, **(audio or {"text": "text"})}
        given = {"kind": "audio", "source": source, "audio": section, "sequence_length": 16}
        return make_data(**(given | options))

    return make
