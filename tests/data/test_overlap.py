import pytest

from jaxformer.data.loader import validation_batches
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer

TOKENIZER = load_tokenizer("bytes")
TEXTS = [f"text {number} " * 9 for number in range(5)]


@pytest.fixture
def warnings_of(make_data, capsys):
    """The warnings of validating on one source while training on another."""

    def run(source: str, validation_source: str | None) -> list[str]:
        data = make_data(source=source, validation_source=validation_source, sequence_length=16)
        stores = Stores(data, TOKENIZER)
        assert stores.validation is not None
        capsys.readouterr()
        validation_batches(stores, batch_size=2)
        return capsys.readouterr().err.splitlines()

    return run


def test_validating_on_a_training_file_warns_once(warnings_of, write_texts, tmp_path) -> None:
    train = write_texts(TEXTS, "train")
    for validation_source in (train, f"text:{tmp_path}/train/0003.txt"):
        assert warnings_of(train, validation_source) == [
            f"warning: data.validation_source '{validation_source}' shares text with the "
            f"training source '{train}': validation will look better than it is"
        ]


def test_validating_on_a_copy_of_prepared_training_text_warns(
    warnings_of, write_texts, make_data
) -> None:
    train, copy = write_texts(TEXTS, "train"), write_texts(TEXTS, "copy")
    for source in (train, copy):
        assert Stores(make_data(source=source, sequence_length=16), TOKENIZER).training
    [warning] = warnings_of(train, copy)
    assert "shares text with the training source" in warning


def test_validating_on_other_text_does_not_warn(warnings_of, write_texts) -> None:
    train, other = write_texts(TEXTS, "train"), write_texts(TEXTS[:4], "other")
    assert warnings_of(train, other) == []
    assert warnings_of(train, None) == []
    assert warnings_of("text:/not/on/this/machine.txt", other) == []


def test_builtin_validated_on_itself_warns(warnings_of) -> None:
    assert len(warnings_of("builtin:python", "builtin:python")) == 1
