"""Pictures from files to a store: sources, decoding, and what is wrong with them."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxformer.data.images import making as image_making
from jaxformer.data.images.rows import ImageRows
from jaxformer.data.stores import Stores
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.errors import UserError
from tests.data.pictures import (
    ANIMALS,
    encoded,
    pixels,
    write_folder,
    write_numbered,
    write_parquet,
    write_tar,
)


def training(data) -> ImageRows:
    [part] = Stores(data, tokenizer_of(data)).training
    assert isinstance(part, ImageRows)
    return part


def only(data, number: int = 0) -> np.ndarray:
    """The pixels of one picture."""
    return training(data).pack(np.asarray([number])).inputs[0]


def single(make_images, folder: Path, content: bytes, **images: object) -> np.ndarray:
    """A picture as it comes out of a store."""
    source = write_parquet(folder / "one.parquet", [content], [0])
    return only(make_images(source, images, validation_fraction=0.0))


def test_a_table_becomes_its_pictures_and_classes_in_their_order(make_images, tmp_path) -> None:
    part = training(make_images(write_numbered(tmp_path, 7), validation_fraction=0.0))
    batch = part.pack(np.arange(7))
    np.testing.assert_array_equal(batch.inputs, [pixels(number) for number in range(7)])
    assert batch.targets[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    manifest = part.store.manifest
    assert (manifest.classes, manifest.per_class) == (ANIMALS, (3, 2, 2))


def test_several_files_are_one_source(make_images, tmp_path) -> None:
    for name in ("a", "b"):
        write_numbered(tmp_path, 3, name)
    part = training(make_images(f"parquet:{tmp_path}/*.parquet", validation_fraction=0.0))
    assert [part.pack(np.asarray([row])).targets.item() for row in range(6)] == [0, 1, 2] * 2


def test_a_folder_has_a_class_for_every_folder_in_it(make_images, tmp_path) -> None:
    source = write_folder(tmp_path / "animals", {"dog": 2, "cat": 3})
    (tmp_path / "animals" / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / "animals" / "more").mkdir()
    data = make_images(source, validation_fraction=0.0)
    assert tokenizer_of(data).decode([0, 1]) == "cat, dog"
    batch = training(data).pack(np.arange(5))
    assert batch.targets[:, 0].tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(batch.inputs[3], pixels(0))


def test_a_webdataset_has_a_column_for_every_ending(make_images, tmp_path) -> None:
    samples = [{"png": encoded(pixels(n)), "cls": b"%d" % (n % 2)} for n in range(5)]
    columns = {"column": "png", "label": "cls"}
    source = write_tar(tmp_path / "a.tar", samples)
    data = make_images(source, columns, tokenizer="classes:2", validation_fraction=0.0)
    batch = training(data).pack(np.arange(5))
    assert batch.targets[:, 0].tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(batch.inputs[4], pixels(4))


def test_a_label_may_be_a_field_inside_of_a_column(make_images, tmp_path) -> None:
    samples = [
        {"png": encoded(pixels(n)), "json": json.dumps({"kind": name}).encode()}
        for n, name in enumerate(["dog", "cat"])
    ]
    source = write_tar(tmp_path / "a.tar", samples)
    data = make_images(source, {"column": "png", "label": "json.kind"}, validation_fraction=0.0)
    assert tokenizer_of(data).decode([0, 1]) == "cat, dog"
    assert training(data).pack(np.arange(2)).targets[:, 0].tolist() == [1, 0]


def test_a_folder_that_datasets_has_saved_is_a_source(make_images, tmp_path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(ANIMALS))}
    )
    pictures = [Image.fromarray(pixels(n)) for n in range(3)]
    saved = datasets.Dataset.from_dict({"image": pictures, "label": [2, 0, 1]}, features)
    saved.save_to_disk(str(tmp_path / "saved"))
    part = training(make_images(f"hf:{tmp_path}/saved", validation_fraction=0.0))
    np.testing.assert_array_equal(part.pack(np.arange(3)).inputs, [pixels(n) for n in range(3)])
    assert part.pack(np.arange(3)).targets[:, 0].tolist() == [2, 0, 1]


COMMIT = "1" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[dict]:
    """The Hub has one dataset, which a file here stands for; gives what it is asked for."""
    import datasets

    write_numbered(tmp_path, 6, "hub")
    load, asked = datasets.load_dataset, []

    def load_dataset(name, config=None, **options):
        if name == "parquet":
            return load(name, **options)
        asked.append({"name": name, "config": config, **options})
        return load("parquet", data_files=f"{tmp_path}/hub.parquet", split="train", streaming=True)

    def no_builder(*_: object, **__: object) -> None:
        raise AssertionError("the commit is known")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", no_builder)
    return asked


def test_a_dataset_of_the_hub_is_streamed_at_its_commit(make_images, hub) -> None:
    data = make_images(f"hf:org/animals/small@{COMMIT}:test", validation_fraction=0.0)
    part = training(data)
    np.testing.assert_array_equal(part.pack(np.asarray([5])).inputs[0], pixels(5))
    asked = {
        "name": "org/animals",
        "config": "small",
        "revision": COMMIT,
        "split": "test",
        "streaming": True,
    }
    assert hub and all(each == asked for each in hub)


def test_a_dataset_of_the_hub_is_not_asked_for_once_its_store_is_there(make_images, hub) -> None:
    data = make_images(f"hf:org/animals@{COMMIT}", validation_fraction=0.5)
    training(data)
    hub.clear()
    stores = Stores(data, tokenizer_of(data))
    assert (len(stores.training[0]), len(stores.validation[0])) == (3, 3)
    assert not hub


def test_a_wrong_row_of_the_hub_is_named(make_images, hub, tmp_path) -> None:
    good = encoded(pixels(0))
    write_parquet(tmp_path / "hub.parquet", [good, good[:50]], [0, 1])
    with pytest.raises(UserError, match=f"hf:org/animals@{COMMIT}, row 2: the picture is cut"):
        training(make_images(f"hf:org/animals@{COMMIT}"))


# Modes, sizes and orientations


def test_shades_of_grey_and_colours_become_the_channels_that_are_asked_for(make_images, tmp_path):
    grey = pixels(0, channels=1)
    np.testing.assert_array_equal(
        single(make_images, tmp_path, encoded(grey)), np.repeat(grey, 3, axis=2)
    )
    colour = pixels(1)
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    shown = single(make_images, tmp_path, encoded(colour), channels=1)
    np.testing.assert_array_equal(shown[..., 0], luma)


def test_what_is_transparent_is_white(make_images, tmp_path) -> None:
    picture = np.full((8, 8, 4), 10, np.uint8)
    picture[:4, :, 3] = 0
    picture[4:, :, 3] = 255
    shown = single(make_images, tmp_path, encoded(picture))
    assert (shown[:4] == 255).all() and (shown[4:] == 10).all()


def test_a_palette_is_looked_up(make_images, tmp_path) -> None:
    picture = Image.fromarray(np.full((8, 8, 3), (200, 0, 50), np.uint8)).quantize(4)
    assert picture.mode == "P"
    shown = single(make_images, tmp_path, encoded(picture))
    assert (shown == np.asarray([200, 0, 50])).all()


def test_cmyk_becomes_colours(make_images, tmp_path) -> None:
    picture = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    shown = single(make_images, tmp_path, encoded(picture, "JPEG", quality=100))
    assert np.abs(shown.astype(int) - [0, 255, 255]).max() < 40


def test_sixteen_bits_are_scaled_to_eight(make_images, tmp_path) -> None:
    values = np.asarray([[0, 257, 65535, 32896]] * 4, np.uint16).repeat(2, 0).repeat(2, 1)
    picture = Image.fromarray(values)
    assert picture.mode.startswith("I;16")
    shown = single(make_images, tmp_path, encoded(picture), channels=1)
    assert shown[0, ::2, 0].tolist() == [0, 1, 255, 128]


def test_a_picture_is_turned_as_its_camera_says(make_images, tmp_path) -> None:
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    picture.paste((255, 255, 255), (0, 0, 8, 4))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    shown = single(make_images, tmp_path, encoded(picture, "PNG", exif=exif))
    assert (shown[:4] == 0).all() and (shown[4:] == 255).all()


def test_crop_keeps_the_centre_and_stretch_keeps_everything(make_images, tmp_path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    cropped = single(make_images, tmp_path, encoded(wide))
    assert (cropped == 255).all()
    stretched = single(make_images, tmp_path, encoded(wide), fit="stretch")
    assert stretched.shape == (8, 8, 3)
    assert stretched[:, 0].max() < 30 and stretched[:, 4].min() > 225


def test_smaller_pictures_are_enlarged(make_images, tmp_path) -> None:
    small = np.full((2, 3, 3), 77, np.uint8)
    assert (single(make_images, tmp_path, encoded(small), size=[6, 6]) == 77).all()


# Wrong rows


def bad_rows(tmp_path: Path) -> dict[str, tuple[bytes | None, int | None]]:
    good = encoded(pixels(0))
    return {
        "row 2: the picture is cut short or damaged": (good[: len(good) // 2], 0),
        "row 2: the picture is no picture; allowed: PNG, JPEG": (b"%!PS-Adobe-3.0 EPSF", 0),
        "row 2: the picture is empty": (b"", 0),
        "row 2: column 'image' is null": (None, 0),
        "row 2: column 'label' is null": (good, None),
        "row 2: column 'label' is 3; allowed: 0 to 2": (good, 3),
        "row 2: column 'label' is -1; allowed: 0 to 2": (good, -1),
    }


@pytest.mark.parametrize("case", range(7))
def test_a_wrong_row_is_named_or_left_out_and_counted(make_images, tmp_path, capfd, case) -> None:
    message, (content, label) = [*bad_rows(tmp_path).items()][case]
    good = encoded(pixels(5))
    source = write_parquet(tmp_path / "a.parquet", [good, content, good], [0, label, 2])
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/a.parquet, {message}")) as raised:
        training(make_images(source, validation_fraction=0.0))
    assert "data.bad_rows=skip" in str(raised.value)
    part = training(make_images(source, validation_fraction=0.0, bad_rows="skip"))
    assert part.pack(np.arange(2)).targets[:, 0].tolist() == [0, 2]
    assert part.store.manifest.left_out == 1
    assert "1 of 3 rows left out; the first: " in capfd.readouterr().err


def test_a_damaged_picture_in_a_folder_is_named_by_its_file(make_images, tmp_path) -> None:
    source = write_folder(tmp_path / "animals", {"cat": 1, "dog": 1})
    file = tmp_path / "animals" / "dog" / "001.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=f"{file}: the picture is cut short"):
        training(make_images(source))


def test_a_file_that_cannot_be_read_is_named(make_images, tmp_path) -> None:
    data = make_images(write_folder(tmp_path / "animals", {"cat": 2}), validation_fraction=0.0)
    stores, file = Stores(data, tokenizer_of(data)), tmp_path / "animals" / "cat" / "001.png"
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{file} cannot be read: No such file"):
        assert stores.training


def test_nothing_but_wrong_rows_is_an_empty_source(make_images, tmp_path) -> None:
    source = write_parquet(tmp_path / "a.parquet", [b"", b""], [0, 1])
    with pytest.raises(UserError, match="holds no picture; all 2 rows were left out, first: "):
        training(make_images(source, bad_rows="skip"))


def test_a_missing_column_is_told_with_the_one_that_is_meant(make_images, tmp_path) -> None:
    one = [encoded(pixels(0))]
    source = write_parquet(tmp_path / "a.parquet", one, [0], columns=("img", "fine_label"))
    with pytest.raises(UserError, match="no column 'image'; columns: img, fine_label.*'img'"):
        training(make_images(source))
    with pytest.raises(UserError, match="Set data.images.label to one of.*mean 'fine_label'"):
        training(make_images(source, {"column": "img"}))


def test_several_classes_of_one_picture_are_refused(make_images, tmp_path) -> None:
    one = [encoded(pixels(0))]
    source = write_parquet(tmp_path / "a.parquet", one, [[0, 1]], names=None)
    with pytest.raises(UserError, match="column 'label' holds List, not one class; allowed: whole"):
        training(make_images(source, tokenizer="classes:3"))


def test_a_damaged_file_is_named(make_images, tmp_path) -> None:
    file = tmp_path / "train.parquet"
    source = write_numbered(tmp_path, 3)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=f"{file}: truncated, damaged or of another kind"):
        training(make_images(source))
    tar = tmp_path / "a.tar"
    source = write_tar(tar, [{"png": encoded(pixels(0, 64, 64)), "cls": b"0"}] * 3)
    tar.write_bytes(tar.read_bytes()[:20_000])
    columns = {"column": "png", "label": "cls"}
    with pytest.raises(UserError, match=f"{tar}: truncated, damaged or of another kind"):
        training(make_images(source, columns, tokenizer="classes:2"))


def test_a_wrong_folder_is_told(make_images, tmp_path) -> None:
    write_folder(tmp_path / "animals", {"cat": 1})
    with pytest.raises(UserError, match="there is no such folder.*Did you mean 'animals'?"):
        training(make_images(f"imagefolder:{tmp_path}/animal"))
    with pytest.raises(UserError, match="no pictures in a folder for their class, as in"):
        training(make_images(f"imagefolder:{tmp_path}/animals/cat"))
    write_folder(tmp_path / "splits" / "train", {"cat": 1})
    write_folder(tmp_path / "splits" / "test", {"cat": 1})
    with pytest.raises(UserError, match="folders test, train, which are no classes; name one"):
        training(make_images(f"imagefolder:{tmp_path}/splits"))


def test_pillow_is_asked_for_where_it_is_missing(make_images, tmp_path, monkeypatch) -> None:
    from jaxformer.data.images import decoding

    monkeypatch.setattr(decoding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("pip install 'jaxformer[media]'")):
        training(make_images(write_numbered(tmp_path, 2)))


# The configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": None}, "images is missing, but kind is images"),
        ({"source": "builtin:python"}, "source is missing, but kind is images; give one of"),
        ({"source": "parqet:a"}, "source 'parqet:a': kind is images.*Did you mean 'parquet'"),
        ({"source": "jsonl:a"}, "source 'jsonl:a': kind is images; allowed: parquet:GLOB"),
        ({"tokenizer": "bytes"}, "tokenizer is bytes, but kind is images; allowed: classes"),
        ({"tokenizer": "classes:x"}, "tokenizer is classes:x; allowed: classes, classes:N"),
        ({"format": "messages"}, "format is messages, but kind is images, and only text has it"),
        ({"min_chars": 3}, "min_chars is 3, but kind is images"),
        ({"add_bos": False}, "add_bos is false, but kind is images"),
        ({"cache_bytes": 0}, "cache_bytes is 0, but kind is images, and only text has it"),
        ({"deduplicate": {}}, "deduplicate is exact, but kind is images"),
        ({"task": {"kind": "mqar"}}, "task is mqar, but kind is images"),
        ({"stages": [{"sequence_length": 8}]}, "stages.0.sequence_length is 8, but kind is images"),
        ({"store_dir": "gs://b/s"}, "store_dir is gs://b/s, but images are read from a disk"),
        ({"source": [{"source": "parquet:a", "column": "x"}]}, "has column x, but kind is images"),
        ({"kind": "text", "source": "text:a", "tokenizer": "bytes"}, "images is given, but kind"),
        ({"kind": "text", "images": None, "source": "text:a"}, "tokenizer is classes, but kind"),
        ({"images": {"size": [8, 8], "augment": {"pad": 8}}}, "pad is 8, but pictures have size"),
        ({"images": {"size": [8, 8], "augment": {"pad": 1, "crop": [0.1, 1]}}}, "leave one of"),
        ({"images": {"size": [8, 8], "augment": {"crop": [0.9, 0.1]}}}, "allowed: .SMALLEST"),
    ],
)
def test_keys_that_do_not_fit_pictures_are_told(make_data, options, message) -> None:
    given = {
        "kind": "images",
        "source": "parquet:a.parquet",
        "images": {"size": [8, 8]},
        "tokenizer": "classes",
    }
    with pytest.raises(ValueError, match=message):
        make_data(**{**given, **options})


# The store


def test_a_store_is_made_once(make_images, tmp_path, capfd) -> None:
    data = make_images(write_numbered(tmp_path, 4))
    before = training(data)
    assert "4 pictures decoded in" in capfd.readouterr().err
    after = training(data)
    assert after.store.place == before.store.place
    assert "decoded" not in capfd.readouterr().err


def test_other_options_and_changed_files_have_a_store_of_their_own(make_images, tmp_path) -> None:
    source = write_numbered(tmp_path, 4)
    places = {
        training(make_images(source, images)).store.place
        for images in ({}, {"size": [8, 4]}, {"channels": 1}, {"fit": "stretch"})
    }
    assert len(places) == 4
    assert training(make_images(source, {"augment": {"flip": True}})).store.place in places
    write_numbered(tmp_path, 5)
    os.utime(tmp_path / "train.parquet", ns=(1, 1))
    assert training(make_images(source)).store.place not in places


@pytest.mark.parametrize("file", ["pictures.bin", "labels.bin"])
@pytest.mark.parametrize("fault", ["cut", "altered", "gone"])
def test_a_damaged_store_is_noticed_and_made_again(
    make_images, tmp_path, capfd, file, fault
) -> None:
    data = make_images(write_numbered(tmp_path, 4))
    part = training(data)
    before, path = part.store.manifest.sha256, (part.store.place / file).path
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.unlink()
    if fault != "gone":
        path.write_bytes(content if fault == "altered" else content[:-1])
    capfd.readouterr()
    assert training(data).store.manifest.sha256 == before
    assert f"decoded again because {file} " in capfd.readouterr().err


def test_an_interrupted_making_leaves_nothing_that_is_believed(
    make_images, tmp_path, monkeypatch
) -> None:
    data = make_images(write_numbered(tmp_path, 4))
    decode, count = image_making.decode, []

    def killed(*given):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return decode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(image_making, "decode", killed)
        with pytest.raises(KeyboardInterrupt):
            training(data)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(path.suffix == ".lock" for path in left)
    assert len(training(data)) == 4


def test_the_manifest_identifies_pictures_and_classes(make_images, tmp_path) -> None:
    data = make_images(write_numbered(tmp_path, 20), validation_fraction=0.1)
    train, validation = Stores(data, tokenizer_of(data)).manifest()
    assert train["sha256"] == validation["sha256"]
    assert (train["rows"], train["tokens"], validation["rows"]) == (18, 72, 2)
    copied = tmp_path / "copy"
    copied.mkdir()
    other = make_images(write_numbered(copied, 20), validation_fraction=0.1)
    assert Stores(other, tokenizer_of(other)).manifest()[0]["sha256"] == train["sha256"]
