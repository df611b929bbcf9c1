"""Recordings as batches: what augmentation does, and that it is a function of its keys alone."""

import numpy as np
import pytest

from jaxformer.config import DataConfig
from jaxformer.config.audio import SoundAugmentConfig
from jaxformer.data.audio.augmentation import augmented
from jaxformer.data.audio.packing import best_fit
from jaxformer.data.audio.texts import normalised, places_needed
from jaxformer.data.draws import streams
from jaxformer.data.loader import iterate, train_batches, validation_batches
from jaxformer.data.stores import Stores
from jaxformer.data.vocabulary import tokenizer_of
from tests.data.recordings import spoken, texts_of, write_spoken

EVERYTHING = {"speed": [0.9, 1.1], "noise": [10, 30], "gain": [-10, 0]}


def stores_of(data: DataConfig) -> Stores:
    return Stores(data, tokenizer_of(data))


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def data(make_audio, tmp_path) -> DataConfig:
    audio = {"text": "text", "max_labels": 5, "augment": EVERYTHING}
    return make_audio(write_spoken(tmp_path, 20), audio, validation_fraction=0.2)


def test_a_batch_has_the_shapes_and_types_that_the_configuration_says(data) -> None:
    for batch in (
        train_batches(stores_of(data), batch_size=5, seed=0)[0],
        validation_batches(stores_of(data), batch_size=5)[0],
    ):
        spec = data.spec(5)
        assert [each.shape for each in batch] == [each.shape for each in spec]
        assert [each.dtype for each in batch] == [each.dtype for each in spec]
        assert data.of_shapes.spec(5) == spec


def test_a_batch_is_a_function_of_seed_and_step_alone(data) -> None:
    one, other = (train_batches(stores_of(data), batch_size=4, seed=7) for _ in range(2))
    forward = [one[step] for step in range(10)]
    backward = [other[step] for step in reversed(range(10))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    with_threads = iterate(one, 5, 4, threads=3)
    assert all(same(next(with_threads), forward[step]) for step in range(5, 10))
    assert not same(train_batches(stores_of(data), batch_size=4, seed=8)[0], forward[0])


def test_hosts_hold_the_rows_of_one_batch(data) -> None:
    whole = train_batches(stores_of(data), batch_size=8, seed=3)
    for held in ([0, 1, 2, 3], [4, 5, 6, 7], [1, 6]):
        part = train_batches(stores_of(data), batch_size=8, seed=3, held=np.array(held))
        for step in (0, 9):
            assert same(part[step], [array[held] for array in whole[step]])


def test_recordings_to_validate_on_are_never_changed(data) -> None:
    [batch] = validation_batches(stores_of(data), batch_size=4)
    [plain] = stores_of(data).validation
    texts = [texts_of(20)[row] for row in plain.chosen]
    for row, text in enumerate(texts):
        samples = np.rint(spoken(text) * 2**15)
        np.testing.assert_allclose(batch.inputs[row, : len(samples)], samples, atol=1)


def test_packed_rows_have_every_recording_once_as_it_is_alone(make_audio, tmp_path) -> None:
    """With a place between two of them, and between their labels; in an epoch of one batch."""
    source, keys = write_spoken(tmp_path, 20), {"text": "text", "augment": EVERYTHING}
    packed, alone = (
        stores_of(make_audio(source, keys | {"pack": pack}, validation_fraction=0.2))
        for pack in (True, False)
    )
    [rows], [single] = packed.training, alone.training
    assert rows.filled == single.filled and len(rows) < 0.7 * len(single)
    assert sorted(np.concatenate(rows.groups)) == list(range(16))
    batch = rows.pack(np.arange(len(rows)), np.full(len(rows), 5, np.uint64))
    expected = single.pack(np.arange(16), np.full(16, 5, np.uint64))
    per_place = single.audio.samples_per_place
    for row, group in enumerate(rows.groups):
        segments, mask = batch.segment_ids[row], batch.loss_mask[row]
        starts = np.flatnonzero(np.diff(np.pad(~mask, (1, 0), constant_values=True)) & mask)
        ends = [np.flatnonzero(segments == number + 1)[-1] for number in range(len(group))]
        for number, recording in enumerate(group):
            places = segments == number + 1
            own = expected.segment_ids[recording] == 1
            np.testing.assert_array_equal(batch.positions[row][places], np.arange(own.sum()))
            heard = batch.inputs[row].reshape(-1, per_place)[places]
            sound = expected.inputs[recording].reshape(-1, per_place)[own]
            np.testing.assert_array_equal(heard, sound)
            labels = single.targets[recording]
            told = slice(starts[number], starts[number] + len(labels))
            np.testing.assert_array_equal(batch.targets[row][told], labels)
            assert mask[told].all() and not mask[told.stop : told.stop + 1].any()
            if number:
                assert np.argmax(places) == ends[number - 1] + 2
    assert [each.shape for each in batch] == [each.shape for each in packed.data.spec(len(rows))]
    assert [each.dtype for each in batch] == [each.dtype for each in packed.data.spec(1)]


def test_the_largest_come_first_and_go_where_least_room_is_left() -> None:
    groups = best_fit(np.array([3, 6, 5, 2, 4]), 10)
    assert [group.tolist() for group in groups] == [[1, 4], [2, 0, 3]]


# Augmentation


def changed(samples: np.ndarray, longest: int = 4000, **keys: object) -> list[np.ndarray]:
    """A recording as 300 rows hear it."""
    config = SoundAugmentConfig.model_validate(keys)
    seeds = streams(np.full(300, 3, np.uint64), np.arange(300))
    return [augmented(samples, seed[None], config, longest) for seed in seeds]


def tone(count: int = 2000, loudness: float = 0.1) -> np.ndarray:
    x = loudness * np.sin(2 * np.pi * 0.05 * np.arange(count))
    return np.rint(x * 2**15).astype(np.int16)


def test_speed_changes_length_and_pitch_in_steps() -> None:
    heard = changed(tone(), speed=[0.9, 1.1])
    lengths = {20: 2000, 18: 2223, 19: 2106, 21: 1905, 22: 1819}
    assert {len(each) for each in heard} == set(lengths.values())
    for each in heard[:20]:
        spectrum = np.abs(np.fft.rfft(each * np.hanning(len(each))))
        assert np.argmax(spectrum) / len(each) * len(each) == pytest.approx(100, abs=1)


def test_no_recording_gets_too_long_for_its_row() -> None:
    lengths = {len(each) for each in changed(tone(), longest=2000, speed=[0.8, 1.1])}
    assert lengths == {2000, 1905, 1819}


def test_noise_has_the_ratio_that_is_asked_for() -> None:
    samples = tone()
    noise = [each.astype(float) - samples for each in changed(samples, noise=[10, 30])]
    signal = np.mean(samples.astype(float) ** 2)
    ratios = np.asarray([10 * np.log10(signal / np.mean(each**2)) for each in noise])
    assert ratios.min() > 9.7 and ratios.max() < 30.3
    assert ratios.mean() == pytest.approx(20, abs=1)
    lags = [np.dot(each[1:], each[:-1]) / np.dot(each, each) for each in noise]
    assert np.abs(np.mean(lags)) < 0.01


def test_gain_is_in_decibels_and_loud_samples_are_clipped() -> None:
    samples = tone()
    heard = changed(samples, gain=[-10, 30])
    factors = np.asarray([each[5] / samples[5] for each in heard if np.abs(each).max() < 2**15 - 1])
    assert 20 * np.log10(factors.min()) == pytest.approx(-10, abs=1)
    assert max(each.max() for each in heard) == 2**15 - 1
    assert min(each.min() for each in heard) == -(2**15)


def test_what_is_switched_on_leaves_the_numbers_of_the_rest() -> None:
    samples = tone()
    alone = changed(samples, gain=[-10, 0])
    both = changed(samples, gain=[-10, 0], noise=[110, 120])  # less than a step of int16
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(one, other, atol=1)


def test_silence_stays_silent() -> None:
    assert not any(each.any() for each in changed(np.zeros(100, np.int16), **EVERYTHING))


# Texts


def test_small_letters_have_no_punctuation() -> None:
    text = "„Proč NEHRAJE?“ – it’s 'rock’n’roll' … 25 %\n"
    assert normalised(text, "lower") == "proč nehraje it's rock'n'roll 25"
    assert normalised(text, "as_is") == text


def test_a_blank_between_equal_labels_needs_a_place() -> None:
    assert places_needed(np.asarray([1, 1, 2, 1, 1, 1])) == 9
    assert places_needed(np.zeros(0, np.int32)) == 0
