"""Pictures as batches: what augmentation does, and that it is a function of its keys alone."""

import numpy as np
import pytest

from jaxformer.config import DataConfig
from jaxformer.config.images import AugmentConfig
from jaxformer.data.draws import numbers, streams, uniforms
from jaxformer.data.images.augmentation import augmented, boxes
from jaxformer.data.images.rand_augment import OPERATIONS, rand_augment
from jaxformer.data.loader import iterate, train_batches, validation_batches
from jaxformer.data.media.parts import held_out
from jaxformer.data.stores import Stores
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.errors import UserError
from tests.data.pictures import pixels, write_folder, write_numbered

DRAWN = [[0.522554, 0.286419, 0.949449], [0.131431, 0.881385, 0.625025]]
EVERYTHING = {"pad": 2, "flip": True, "rand_augment": {"magnitude": 15}, "erase": 0.5}


def stores_of(data: DataConfig) -> Stores:
    return Stores(data, tokenizer_of(data))


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def seeds(count: int, key: int = 3) -> np.ndarray:
    return streams(np.full(count, key, np.uint64), np.arange(count))


@pytest.fixture
def data(make_images, tmp_path) -> DataConfig:
    return make_images(write_numbered(tmp_path, 30), {"augment": EVERYTHING})


def test_a_batch_has_the_shapes_and_types_that_the_configuration_says(data) -> None:
    for batch in (
        train_batches(stores_of(data), batch_size=5, seed=0)[0],
        validation_batches(stores_of(data), batch_size=5)[0],
    ):
        spec = data.spec(5)
        assert [each.shape for each in batch] == [each.shape for each in spec]
        assert [each.dtype for each in batch] == [each.dtype for each in spec]
    assert batch.positions[0].tolist() == [0, 1, 2, 3]
    assert batch.segment_ids[0].tolist() == [1, 1, 1, 1]


def test_rows_that_fill_up_a_batch_are_zero(make_images, tmp_path) -> None:
    data = make_images(write_numbered(tmp_path, 30), validation_fraction=0.1)
    batches = validation_batches(stores_of(data), batch_size=2)
    last = batches[-1]
    assert len(batches) == 2
    assert batches.loss_tokens == sum(int(batch.loss_mask.sum()) for batch in batches) == 3
    assert all((array[1] == 0).all() for array in last)
    assert last.inputs.shape == (2, 8, 8, 3) and last.loss_mask[0].all()


def test_a_batch_is_a_function_of_seed_and_step_alone(data) -> None:
    one, other = (train_batches(stores_of(data), batch_size=4, seed=7) for _ in range(2))
    forward = [one[step] for step in range(20)]
    backward = [other[step] for step in reversed(range(20))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    with_threads = iterate(one, 5, 4, threads=3)
    assert all(same(next(with_threads), forward[step]) for step in range(5, 20))
    assert not same(train_batches(stores_of(data), batch_size=4, seed=8)[0], forward[0])


def test_a_picture_is_augmented_alike_in_batches_of_any_size(data) -> None:
    large = train_batches(stores_of(data), batch_size=12, seed=7)[0]
    small = train_batches(stores_of(data), batch_size=3, seed=7)
    joined = np.concatenate([small[step].inputs for step in range(4)])
    np.testing.assert_array_equal(joined, large.inputs)


def test_hosts_hold_the_rows_of_one_batch(data) -> None:
    whole = train_batches(stores_of(data), batch_size=8, seed=3)
    for held in ([0, 1, 2, 3], [4, 5, 6, 7], [1, 6]):
        part = train_batches(stores_of(data), batch_size=8, seed=3, held=np.array(held))
        for step in (0, 9):
            expected = [array[held] for array in whole[step]]
            assert same(part[step], expected)


def test_an_epoch_has_every_picture_once_and_augments_it_anew(make_images, tmp_path) -> None:
    source = write_numbered(tmp_path, 12)
    plain = make_images(source, validation_fraction=0.0)
    epoch = train_batches(stores_of(plain), batch_size=12, seed=0)
    pictures = [{picture.tobytes() for picture in epoch[step].inputs} for step in range(2)]
    assert pictures[0] == pictures[1] == {pixels(number).tobytes() for number in range(12)}
    changed = make_images(source, {"augment": {"pad": 3}}, validation_fraction=0.0)
    epoch = train_batches(stores_of(changed), batch_size=12, seed=0)
    pictures = [{picture.tobytes() for picture in epoch[step].inputs} for step in range(2)]
    assert len(pictures[0] & pictures[1]) < 4


def test_pictures_to_validate_on_are_never_augmented(make_images, tmp_path) -> None:
    source = write_numbered(tmp_path, 6)
    data = make_images(source, {"augment": EVERYTHING}, validation_source=source)
    [batch] = validation_batches(stores_of(data), batch_size=6)
    np.testing.assert_array_equal(batch.inputs, [pixels(number) for number in range(6)])


def test_sources_are_mixed_by_weight(make_images, tmp_path) -> None:
    many = write_numbered(tmp_path, 30)
    dogs = write_folder(tmp_path / "dogs", {"dog": 4})
    sources = [{"source": many, "weight": 1}, {"source": dogs, "weight": 3}]
    data = make_images(sources, validation_fraction=0.0)
    batch = train_batches(stores_of(data), batch_size=40, seed=0)[0]
    of_folder = {pixels(number).tobytes() for number in range(4)}
    share = np.mean([picture.tobytes() in of_folder for picture in batch.inputs])
    assert 0.7 < share < 0.9
    assert set(batch.targets[:, 0].tolist()) <= {0, 1, 2}


# What is held out


def test_what_is_held_out_comes_from_all_over_a_source() -> None:
    held = held_out(1000, 0.1)
    assert held.sum() == 100
    counts = held.reshape(4, 250).sum(axis=1)
    assert counts.min() > 12
    more = held_out(1010, 0.1)[:1000]
    assert (held & more).sum() > 95
    assert held_out(1000, 0.0).sum() == 0


def test_training_and_validation_share_no_picture(make_images, tmp_path) -> None:
    source = write_folder(tmp_path / "animals", {"cat": 10, "dog": 10, "eel": 10})
    stores = stores_of(make_images(source, validation_fraction=0.3))
    [train], [validation] = stores.training, stores.validation
    rows = np.concatenate([train.chosen, validation.chosen])
    assert sorted(rows.tolist()) == list(range(30))
    assert len(validation) == 9
    assert len(set(validation.pack(np.arange(9)).targets[:, 0].tolist())) == 3


def test_a_fraction_that_holds_out_nothing_is_told(make_images, tmp_path) -> None:
    data = make_images(write_numbered(tmp_path, 6), validation_fraction=0.1)
    with pytest.raises(UserError, match="of 6 pictures, data.validation_fraction 0.1 holds out"):
        validation_batches(stores_of(data), batch_size=2)


def test_validating_on_a_training_file_is_warned_of(make_images, tmp_path, capfd) -> None:
    source = write_numbered(tmp_path, 6)
    validation_batches(stores_of(make_images(source, validation_source=source)), batch_size=2)
    assert "shares pictures with the training source" in capfd.readouterr().err


# Augmentation


def test_the_numbers_of_a_release_are_the_numbers_of_the_next() -> None:
    """A resumed run must see the pictures that it would have seen: these may not change."""
    first, second = numbers(np.zeros(1, np.uint64), np.arange(2)).tolist()
    assert (hex(first), hex(second)) == ("0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4")
    drawn = uniforms(seeds(2, key=1), 0, 3).round(6)
    assert drawn.tolist() == DRAWN


def test_numbers_are_uniform_and_those_of_rows_and_keys_are_independent() -> None:
    drawn = uniforms(seeds(20_000), 0, 4)
    assert drawn.min() >= 0 and drawn.max() < 1
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(drawn.var(axis=0), 1 / 12, atol=0.002)
    others = uniforms(seeds(20_000, key=4), 0, 4)
    together = np.corrcoef(np.concatenate([drawn, others, np.roll(drawn, 1, axis=0)], axis=1).T)
    assert np.abs(together - np.eye(12)).max() < 0.03


def test_half_of_the_pictures_are_flipped() -> None:
    picture = pixels(0)
    flipped = augmented(np.stack([picture] * 4000), seeds(4000), AugmentConfig(flip=True))
    is_flipped = (flipped == picture[:, ::-1]).all(axis=(1, 2, 3))
    assert ((flipped == picture).all(axis=(1, 2, 3)) ^ is_flipped).all()
    assert is_flipped.mean() == pytest.approx(0.5, abs=0.03)


def test_padding_shifts_a_picture_every_way_as_often() -> None:
    picture = np.zeros((9, 9, 1), np.uint8)
    picture[4, 4] = 255
    shifted = augmented(np.stack([picture] * 5000), seeds(5000), AugmentConfig(pad=2))
    assert (shifted.sum(axis=(1, 2, 3)) == 255).all()
    _, down, right, _ = np.nonzero(shifted)
    counts = np.bincount((down - 2) * 5 + right - 2, minlength=25)
    assert counts.min() > 140 and counts.max() < 260 and len(counts) == 25


def test_padding_uncovers_black_and_moves_nothing_else() -> None:
    pictures = np.full((200, 6, 7, 3), 200, np.uint8)
    shifted = augmented(pictures, seeds(200), AugmentConfig(pad=3))
    for picture in shifted:
        rows, columns = (picture[..., 0].any(axis=axis) for axis in (1, 0))
        assert (picture[np.ix_(rows, columns)] == 200).all()
        assert rows.sum() >= 3 and columns.sum() >= 4


def test_crops_lie_inside_and_have_the_areas_that_are_asked_for() -> None:
    left, top, across, down = boxes(seeds(5000), 40, 60, (0.2, 0.6)).T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + across <= 60 + 1e-9).all() and (top + down <= 40 + 1e-9).all()
    share = across * down / (40 * 60)
    assert share.min() > 0.19 and share.max() < 0.61
    assert share.mean() == pytest.approx(0.4, abs=0.02)
    aspect = across / down
    assert aspect.min() >= 0.75 - 1e-9 and aspect.max() <= 4 / 3 + 1e-9


def test_a_crop_of_everything_is_the_picture_and_one_of_a_part_is_not() -> None:
    pictures = np.stack([pixels(number) for number in range(6)])
    part = augmented(pictures, seeds(6), AugmentConfig(crop=(0.1, 0.3)))
    assert part.shape == pictures.shape and not (part == pictures).all(axis=(1, 2, 3)).any()
    flat = np.full((3, 8, 8, 1), 90, np.uint8)
    np.testing.assert_array_equal(augmented(flat, seeds(3), AugmentConfig(crop=(0.1, 1.0))), flat)


def test_a_share_of_the_pictures_has_a_rectangle_of_noise() -> None:
    pictures = np.full((2000, 16, 16, 1), 7, np.uint8)
    erased = augmented(pictures, seeds(2000), AugmentConfig(erase=0.25))
    changed = (erased != pictures)[..., 0]
    assert changed.any(axis=(1, 2)).mean() == pytest.approx(0.25, abs=0.03)
    for mask in changed[changed.any(axis=(1, 2))][:50]:
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert area <= 16 * 16 * 0.45
        assert mask.sum() >= 0.8 * area
    assert (pictures == 7).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_keeps_shape_and_type(channels: int) -> None:
    picture = pixels(0, 12, 10, channels)
    for number in range(len(OPERATIONS)):
        for direction in (0.2, 0.8):
            draws = np.asarray([[(number + 0.5) / len(OPERATIONS), direction]])
            changed = rand_augment(picture, draws, 20)
            assert changed.shape == picture.shape and changed.dtype == np.uint8
            is_same = np.array_equal(changed, picture)
            assert is_same or OPERATIONS[number].__name__ != "_same"


def test_magnitude_zero_moves_and_colours_nothing() -> None:
    picture = np.minimum(pixels(0, 12, 10), 254)  # white is inverted at any strength
    for number, operation in enumerate(OPERATIONS):
        if operation.__name__ in ("_auto_contrast", "_equalize"):
            continue  # have no strength
        draws = np.asarray([[(number + 0.5) / len(OPERATIONS), 0.1]])
        np.testing.assert_array_equal(rand_augment(picture, draws, 0), picture)


def test_what_is_switched_on_leaves_the_numbers_of_the_rest() -> None:
    pictures = np.stack([pixels(number) for number in range(64)])
    shifted = augmented(pictures, seeds(64), AugmentConfig(pad=2))
    both = augmented(pictures, seeds(64), AugmentConfig(pad=2, flip=True))
    is_same = (both == shifted).all(axis=(1, 2, 3))
    assert (is_same | (both == shifted[:, :, ::-1]).all(axis=(1, 2, 3))).all()
