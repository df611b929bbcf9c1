"""Recordings from files to a store: sources, decoding, and what is wrong with them."""

import csv
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxformer.config import DataConfig
from jaxformer.data.audio.rows import AudioRows
from jaxformer.data.character_tokenizer import CharacterTokenizer
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.errors import UserError
from tests.data.recordings import RATE, encoded, spoken, texts_of, write_parquet, write_spoken

LABELS = {"label": "label"}


def training(data) -> AudioRows:
    [part] = Stores(data, tokenizer_of(data)).training
    assert isinstance(part, AudioRows)
    return part


def single(make_audio, folder: Path, content: bytes, rate: int = RATE) -> np.ndarray:
    """The samples of a recording as they are in a store."""
    source = write_parquet(folder / "one.parquet", [content], ["a"])
    audio = {"text": "text", "sample_rate": rate}
    part = training(make_audio(source, audio, validation_fraction=0.0, sequence_length=100))
    return np.asarray(part.store.samples)


def said(part: AudioRows) -> list[str]:
    return ["".join(map(chr, labels)) for labels in part.targets]


def as_stored(samples: np.ndarray) -> np.ndarray:
    return np.rint(samples * 2**15).astype(np.int16)


def test_a_table_becomes_its_recordings_and_texts_in_their_order(make_audio, tmp_path) -> None:
    part = training(make_audio(write_spoken(tmp_path, 6), validation_fraction=0.0))
    batch, texts = part.pack(np.arange(6)), texts_of(6)
    assert said(part) == texts
    for row, text in enumerate(texts):
        samples = as_stored(spoken(text))
        np.testing.assert_allclose(batch.inputs[row, : len(samples)], samples, atol=1)
        assert not batch.inputs[row, len(samples) :].any()
        assert batch.segment_ids[row].tolist() == [1] * 4 * len(text) + [0] * (16 - 4 * len(text))
        assert batch.targets[row][batch.loss_mask[row]].tolist() == [*text.encode()]
    assert batch.inputs.dtype == np.int16 and batch.inputs.shape == (6, 256)
    assert batch.targets.shape == batch.loss_mask.shape == (6, 16)
    assert batch.positions[0].tolist() == [*range(16)]


def test_classes_of_recordings_are_those_of_the_table(make_audio, tmp_path) -> None:
    names, contents = ("high", "low"), [encoded(spoken(letter)) for letter in "cab"]
    source = write_parquet(tmp_path / "a.parquet", contents, [0, 1, 1], "label", names)
    data = make_audio(source, LABELS, validation_fraction=0.0)
    assert tokenizer_of(data).decode([0, 1]) == "high, low"
    batch = training(data).pack(np.arange(3))
    assert batch.targets.tolist() == [[0], [1], [1]] and batch.loss_mask.all()


@pytest.mark.parametrize(
    ("kind", "largest"), [("WAV", 1), ("FLAC", 1), ("AIFF", 1), ("OGG", 3000), ("MP3", 6000)]
)
def test_formats_are_decoded(make_audio, tmp_path, kind, largest) -> None:
    samples = spoken("ab", 8000)
    content = encoded(samples, 8000, kind)
    stored = single(make_audio, tmp_path, content, 8000)
    np.testing.assert_allclose(stored[: len(samples)], as_stored(samples), atol=largest)


def test_channels_are_averaged(make_audio, tmp_path) -> None:
    both = np.stack([spoken("a"), spoken("b")], axis=1)
    stored = single(make_audio, tmp_path, encoded(both))
    np.testing.assert_allclose(stored, as_stored(both.mean(axis=1)), atol=1)


@pytest.mark.parametrize("rate", [400, 1600, 2205])
def test_another_sample_rate_is_changed_and_counted(make_audio, tmp_path, rate) -> None:
    time = np.arange(rate) / rate
    contents = [encoded(0.5 * np.sin(2 * np.pi * 100 * time), rate), encoded(spoken("a"))]
    source = write_parquet(tmp_path / "a.parquet", contents, ["a", "b"])
    data = make_audio(source, validation_fraction=0.0, sequence_length=50)
    store = training(data).store
    assert store.manifest.resampled == 1
    assert store.ends.tolist() == [0, RATE, RATE + 64]
    expected = 0.5 * np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)
    middle = slice(100, RATE - 100)
    np.testing.assert_allclose(store.samples[:RATE][middle] / 2**15, expected[middle], atol=0.01)


def test_what_a_lower_rate_cannot_hold_is_silent(make_audio, tmp_path) -> None:
    time = np.arange(3200) / 3200
    high = encoded(0.5 * np.sin(2 * np.pi * 700 * time), 3200)
    stored = single(make_audio, tmp_path, high)
    assert np.abs(stored[50:-50]).max() < 0.01 * 2**15


# Sources


def write_folder(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(spoken("abc"[number % 3]), kind=file.suffix[1:].upper()))


def test_a_folder_has_a_class_for_every_folder_in_it(make_audio, tmp_path) -> None:
    write_folder(tmp_path / "words", ["no/1.wav", "yes/1.flac", "yes/2.ogg"])
    data = make_audio(f"audiofolder:{tmp_path}/words", LABELS, validation_fraction=0.0)
    assert tokenizer_of(data).decode([0, 1]) == "no, yes"
    assert training(data).pack(np.arange(3)).targets.ravel().tolist() == [0, 1, 1]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_in_a_folder_has_the_texts_of_its_files(make_audio, tmp_path, kind) -> None:
    folder = tmp_path / "spoken"
    write_folder(folder, ["x/1.wav", "2.wav"])
    rows = [{"file_name": "2.wav", "said": "b, c"}, {"file_name": "x/1.wav", "said": "a\u2028"}]
    with (folder / f"metadata.{kind}").open("w", newline="", encoding="utf-8") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, ["file_name", "said"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = make_audio(f"audiofolder:{folder}", {"text": "said"}, validation_fraction=0.0)
    part = training(data)
    assert [*part.store.targets] == ["b, c", "a\u2028"]
    np.testing.assert_allclose(part.store.samples[:64], as_stored(spoken("b")), atol=1)

    (folder / "2.wav").unlink()
    with pytest.raises(UserError, match=f"{kind}, row 1: column 'file_name' is 2.wav, and there"):
        training(data)


def test_a_webdataset_has_a_column_for_every_ending(make_audio, tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, letter in enumerate("ab"):
            for end, content in {"wav": encoded(spoken(letter)), "txt": letter.encode()}.items():
                member = tarfile.TarInfo(f"{number}.{end}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    columns = {"column": "wav", "text": "txt"}
    data = make_audio(f"webdataset:{tmp_path}/a.tar", columns, validation_fraction=0.0)
    part = training(data)
    assert said(part) == ["a", "b"]
    np.testing.assert_allclose(part.store.samples[64:], as_stored(spoken("b")), atol=1)


# Wrong rows


def cut(kind: str) -> bytes:
    content = encoded(spoken("abcabc", 8000), 8000, kind)
    return content[: len(content) * 2 // 3]


WRONG = {
    "row 2: the recording is cut short": (cut("WAV"), "b"),
    "row 2: the recording is damaged or none (": (cut("FLAC"), "b"),
    "row 2: the recording is cut short; fix": (cut("OGG"), "b"),
    "row 2: the recording is damaged or none (Format not": (b"not sound", "b"),
    "row 2: the recording is empty": (b"", "b"),
    "row 2: the recording has no samples": (encoded(np.zeros(0)), "b"),
    "row 2: column 'audio' is null": (None, "b"),
    "row 2: column 'text' is null, not text": (encoded(spoken("b")), None),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_row_is_named_or_left_out_and_counted(make_audio, tmp_path, capfd, message):
    content, text = WRONG[message]
    good = encoded(spoken("a"))
    source = write_parquet(tmp_path / "a.parquet", [good, content, good], ["a", text, "c"])
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/a.parquet, {message}")) as raised:
        training(make_audio(source, validation_fraction=0.0))
    assert "data.bad_rows=skip" in str(raised.value)
    part = training(make_audio(source, validation_fraction=0.0, bad_rows="skip"))
    assert said(part) == ["a", "c"] and part.store.manifest.left_out == 1
    assert "1 of 3 rows left out; the first: " in capfd.readouterr().err


def test_samples_that_are_no_numbers_are_refused(make_audio, tmp_path) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.full(64, np.nan, np.float32), RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(UserError, match="row 1: the recording has samples that are no numbers"):
        single(make_audio, tmp_path, file.getvalue())


def test_a_stream_whose_size_was_not_known_is_whole(make_audio, tmp_path) -> None:
    content = encoded(spoken("ab"))
    piped = content.replace(b"data" + (256).to_bytes(4, "little"), b"data\xff\xff\xff\xff")
    assert piped != content
    assert len(single(make_audio, tmp_path, piped)) == 128


def test_what_is_too_long_for_a_row_is_told_or_left_out(make_audio, tmp_path, capfd) -> None:
    source = write_spoken(tmp_path, 6)  # of 4, 8 and 12 places
    for keys, options, message in [
        ({}, {"sequence_length": 8}, "row 3: the recording lasts 0.24 s, and rows of"),
        ({"max_labels": 2}, {}, "row 3: the text has 3 ids, and rows hold 2"),
    ]:
        audio = {"text": "text", **keys}
        with pytest.raises(UserError, match=message):
            training(make_audio(source, audio, validation_fraction=0.0, **options))
        skipping = {**audio, "too_long": "skip"}
        part = training(make_audio(source, skipping, validation_fraction=0.0, **options))
        assert said(part) == [text for text in texts_of(6) if len(text) < 3]
        told = capfd.readouterr().err
        assert "left out 2 of 6 recordings, which are too long; the first: " in told


def test_texts_that_no_path_gives_are_validated_on_but_not_trained_on(
    make_audio, tmp_path, capfd
) -> None:
    texts = ["aaa", "abcd", "abcde"]  # of 5, 4 and 5 places, with blanks between equal letters
    contents = [encoded(spoken("a")) for _ in texts]  # of 4 places
    source = write_parquet(tmp_path / "a.parquet", contents, texts)
    stores = Stores(data := make_audio(source, validation_source=source), tokenizer_of(data))
    [train], [validation] = stores.training, stores.validation
    assert said(train) == ["abcd"] and said(validation) == texts
    told = capfd.readouterr().err
    assert "left out 2 of 3 recordings, which have texts with more labels than CTC" in told
    assert "a.parquet, row 1 needs 5 places and has 4" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": None}, "audio is missing, but kind is audio; give at least audio: {samples_per"),
        ({"audio": {"samples_per_place": 16}}, "neither text nor label is given"),
        ({"images": {"size": [8, 8]}}, "images is given, but kind is audio"),
        ({"source": "imagefolder:a"}, "kind is audio; allowed: .*audiofolder:FOLDER"),
        ({"source": "builtin:python"}, "source is missing, but kind is audio"),
        ({"tokenizer": "classes"}, "tokenizer is classes, but audio.text has texts"),
        ({"min_chars": 2}, "min_chars is 2, but kind is audio, and only text has it"),
        ({"store_dir": "gs://b/s"}, "store_dir is gs://b/s, but audio are read from a disk"),
        ({"stages": [{"sequence_length": 8}]}, "stages.0.sequence_length is 8, but kind is audio"),
        ({"kind": "text", "source": "text:a"}, "audio is given, but kind is text"),
    ],
)
def test_keys_that_do_not_fit_recordings_are_told(make_data, options, message) -> None:
    audio = {"samples_per_place": 16, "text": "text"}
    given = {"kind": "audio", "source": "parquet:a.parquet", "audio": audio}
    with pytest.raises(ValueError, match=message):
        make_data(**{**given, **options})


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ({"label": "label"}, "text and label are both given"),
        ({"text": None, "label": "l", "letters": "lower"}, "letters is given, but classes have no"),
        ({"augment": {"gain": [3, -3]}}, r"gain is \[3, -3\]; allowed: .* \[-3, 3\]"),
    ],
)
def test_a_section_that_contradicts_itself_is_told(make_audio, audio, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_audio("parquet:a.parquet", {"text": "text", **audio})


def test_a_missing_column_is_told_with_the_one_that_is_meant(make_audio, tmp_path) -> None:
    source = write_parquet(tmp_path / "a.parquet", [encoded(spoken("a"))], ["a"], "sentence")
    with pytest.raises(UserError, match="Set data.audio.text to one of them. Did you mean 'sent"):
        training(make_audio(source))


# Characters


def test_characters_are_those_of_the_training_texts(make_audio, tmp_path) -> None:
    texts = ["A b, a", "c A"]
    source = write_parquet(tmp_path / "a.parquet", [encoded(spoken("abc"))] * 2, texts)
    data = make_audio(source, tokenizer="characters", validation_fraction=0.0)
    assert tokenizer_of(data).vocab_size == len(" ,Aabc") + 2
    small = make_audio(source, {"text": "text", "letters": "lower"}, tokenizer="characters")
    tokenizer = tokenizer_of(small)
    assert tokenizer.encode("a cd").tolist() == [1, 0, 3, 4]
    assert tokenizer.decode([1, 0, 3, 4, tokenizer.eos_id]) == "a c\ufffd"
    assert tokenizer.eos_id == tokenizer.vocab_size - 1 == 5
    with pytest.raises(ValueError, match="tokenizer is characters, but kind is text; give kind: a"):
        DataConfig(tokenizer="characters")


def test_characters_are_read_from_a_file(tmp_path) -> None:
    made = CharacterTokenizer("characters", 'č"\n')
    (tmp_path / "characters.json").write_text(made.as_json(), encoding="utf-8")
    for name in (tmp_path, tmp_path / "characters.json"):
        assert load_tokenizer(str(name)).fingerprint == made.fingerprint
    for text, message in [
        ('{"characters": "aba"}', "a character is there twice"),
        ('{"characters": ["a"]}', "has no text of characters; allowed: {"),
        ("abc", "is not JSON"),
    ]:
        (tmp_path / "characters.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_tokenizer(str(tmp_path))


def test_a_damaged_store_is_noticed_and_made_again(make_audio, tmp_path, capfd) -> None:
    data = make_audio(write_spoken(tmp_path, 4), validation_fraction=0.0)
    store = training(data).store
    before = store.manifest
    file = Path(store.place.path) / "ends.bin"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert training(data).store.manifest == before
    assert "decoded again because ends.bin does not have the hash" in capfd.readouterr().err
