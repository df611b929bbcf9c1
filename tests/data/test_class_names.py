"""Classes: where their names come from, that sources agree on them, and what a run keeps."""

import json
import shutil

import numpy as np
import pytest

from jaxformer.checkpoint.own_copies import keep_tokenizer
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import Config
from jaxformer.config.loading import load_config
from jaxformer.data.class_names import ClassNames
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.errors import UserError
from tests.data.pictures import (
    ANIMALS,
    MODEL,
    encoded,
    pixels,
    write_folder,
    write_numbered,
    write_parquet,
)


def names_of(data) -> tuple[str, ...]:
    classes = tokenizer_of(data)
    assert isinstance(classes, ClassNames)
    return classes.names


def contents(count: int) -> list[bytes]:
    return [encoded(pixels(number)) for number in range(count)]


def test_a_list_of_classes_keeps_its_order(make_images, tmp_path) -> None:
    source = write_parquet(tmp_path / "a.parquet", contents(1), [0], names=["z", "a", "m"])
    assert names_of(make_images(source)) == ("z", "a", "m")


def test_texts_are_sorted(make_images, tmp_path) -> None:
    source = write_parquet(tmp_path / "a.parquet", contents(4), ["z", "a", "z", "ä"], names=None)
    data = make_images(source, validation_fraction=0.0)
    assert names_of(data) == ("a", "z", "ä")
    [part] = Stores(data, tokenizer_of(data)).training
    assert part.pack(np.arange(4)).targets[:, 0].tolist() == [1, 0, 1, 2]


def test_folders_of_several_sources_are_joined(make_images, tmp_path) -> None:
    one = write_folder(tmp_path / "one", {"dog": 2, "eel": 1})
    two = write_folder(tmp_path / "two", {"cat": 2, "dog": 1})
    data = make_images([{"source": one}, {"source": two}], validation_fraction=0.0)
    assert names_of(data) == ANIMALS
    first, second = Stores(data, tokenizer_of(data)).training
    assert first.pack(np.arange(3)).targets[:, 0].tolist() == [1, 1, 2]
    assert second.pack(np.arange(3)).targets[:, 0].tolist() == [0, 0, 1]
    assert first.manifest()["ids"] == [1, 2]


def test_numbers_need_to_be_told_how_many_there_are(make_images, tmp_path) -> None:
    source = write_parquet(tmp_path / "a.parquet", contents(3), [0, 4, 2], names=None)
    with pytest.raises(UserError, match="column 'label' has numbers without names; give.*N"):
        tokenizer_of(make_images(source))
    data = make_images(source, tokenizer="classes:5", validation_fraction=0.0)
    [part] = Stores(data, tokenizer_of(data)).training
    assert part.pack(np.arange(3)).targets[:, 0].tolist() == [0, 4, 2]
    few = make_images(source, tokenizer="classes:4")
    with pytest.raises(UserError, match="row 2: column 'label' is 4; allowed: 0 to 3"):
        assert Stores(few, tokenizer_of(few)).training


def test_numbers_do_for_a_list_of_as_many_names_only(make_images, tmp_path) -> None:
    source = write_numbered(tmp_path, 3)
    data = make_images(source, tokenizer="classes:3")
    assert Stores(data, tokenizer_of(data)).training
    other = make_images(source, tokenizer="classes:4")
    with pytest.raises(UserError, match="3 classes with names.*data.tokenizer is classes:4; give"):
        assert Stores(other, tokenizer_of(other)).training


@pytest.mark.parametrize("names", [("cat", "eel", "dog"), ("cat", "dog"), (*ANIMALS, "fox")])
def test_a_validation_source_has_the_same_list_or_is_refused(make_images, tmp_path, names) -> None:
    train = write_numbered(tmp_path, 3)
    other = write_parquet(tmp_path / "other.parquet", contents(2), [0, 1], names=names)
    data = make_images(train, validation_source=other)
    with pytest.raises(UserError, match="other.parquet' has other classes than the run") as raised:
        assert Stores(data, tokenizer_of(data)).validation
    assert f"there: {', '.join(names)}\n" in str(raised.value)
    assert "here:  cat, dog, eel\n" in str(raised.value)


def test_a_validation_folder_may_lack_classes_but_have_no_others(make_images, tmp_path) -> None:
    train = write_folder(tmp_path / "train", {"cat": 1, "dog": 1, "eel": 1})
    less = write_folder(tmp_path / "less", {"eel": 2})
    data = make_images(train, validation_source=less)
    [part] = Stores(data, tokenizer_of(data)).validation
    assert part.pack(np.arange(2)).targets[:, 0].tolist() == [2, 2]
    more = write_folder(tmp_path / "more", {"cats": 1})
    data = make_images(train, validation_source=more)
    with pytest.raises(UserError, match="has the class 'cats', which is not.*Did you mean 'cat'?"):
        assert Stores(data, tokenizer_of(data)).validation


def test_a_file_of_classes_says_their_order(make_images, tmp_path) -> None:
    source = write_folder(tmp_path / "train", {"cat": 1, "dog": 1})
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({"format": 1, "classes": ["dog", "eel", "cat"]}))
    for name in (str(file), str(tmp_path)):
        data = make_images(source, tokenizer=name, validation_fraction=0.0)
        [part] = Stores(data, tokenizer_of(data)).training
        assert part.pack(np.arange(2)).targets[:, 0].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('["a"]', "has no list of names"),
        ('{"classes": [1]}', "has no list of names"),
        ('{"classes": []}', "there are no classes"),
        ('{"classes": ["a", "b", "a"]}', "the class 'a' is there twice"),
    ],
)
def test_a_wrong_file_of_classes_is_told(tmp_path, text, message) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))


def test_classes_are_no_tokenizer_of_text(make_images, bpe_folder, tmp_path) -> None:
    classes = ClassNames("classes", ANIMALS)
    assert (classes.vocab_size, classes.decode([2, 0])) == (3, "eel, cat")
    with pytest.raises(UserError, match="has 3 classes and reads no text"):
        classes.encode("cat")
    data = make_images(write_numbered(tmp_path, 2), tokenizer=str(bpe_folder))
    with pytest.raises(UserError, match="is one of text, but the rows of data.kind images"):
        Stores(data, tokenizer_of(data))


def test_the_fingerprint_is_that_of_names_and_order() -> None:
    same = ClassNames("classes", ANIMALS), ClassNames("/run/tokenizer", ANIMALS)
    assert same[0].fingerprint == same[1].fingerprint
    assert ClassNames("classes", ANIMALS[::-1]).fingerprint != same[0].fingerprint


def test_a_run_keeps_its_classes_and_is_read_without_its_data(make_images, tmp_path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    data = make_images(write_numbered(folder, 6))
    run = {"dir": str(tmp_path / "run")}
    train = {"objective": {"kind": "classes"}}
    config = Config.model_validate(
        {"model": MODEL, "data": data.model_dump(), "train": train, "run": run}
    )
    directory = RunDirectory(tmp_path / "run")
    directory.create(config)
    classes = tokenizer_of(config.data)
    keep_tokenizer(directory, classes)
    keep_tokenizer(directory, classes)
    (directory.checkpoints / "4").mkdir(parents=True)
    kept = json.loads((directory.tokenizer / "classes.json").read_text())
    assert kept == {"format": 1, "classes": list(ANIMALS)}
    shutil.rmtree(folder)
    moved = directory.path.rename(tmp_path / "moved")
    read = load_config(moved).data
    assert read.tokenizer == str(moved / "tokenizer")
    assert tokenizer_of(read).fingerprint == classes.fingerprint
    assert RunDirectory(moved).with_own_copies(config).data.tokenizer == str(moved / "tokenizer")
