import pytest

from jaxformer.config import CheckpointConfig
from jaxformer.parallel import processes
from jaxformer.train.run import train
from jaxformer.train.timetable import Timetable
from tests.runs import assert_same_arrays, make_config, results, saved_arrays


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def saves(timetable: Timetable, clock: Clock, seconds: list[float]) -> dict[int, float]:
    """The steps at which it is due and the clock there, of steps that take so many seconds each."""
    timetable.restart(0)
    found = {}
    for step, each in enumerate(seconds, start=1):
        clock.now += each
        if timetable.due(step):
            found[step] = clock.now
            timetable.restart(step)
    return found


@pytest.fixture
def meetings(monkeypatch) -> list:
    """What process 0 has said."""
    said = []

    def told_by(process, mine):
        said.append(mine)
        return mine

    monkeypatch.setattr(processes, "told_by", told_by)
    return said


def test_it_is_due_at_the_nearest_step_after_few_meetings(meetings):
    clock = Clock(1e6)
    found = saves(Timetable(10, clock), clock, [1.0] * 1900)
    assert list(found) == [600, 1200, 1800]
    assert len(meetings) <= 3 * 20


def test_steps_that_take_longer_than_the_interval_are_all_saved(meetings):
    clock = Clock()
    assert list(saves(Timetable(1, clock), clock, [100.0] * 4)) == [1, 2, 3, 4]


def test_when_steps_become_slower_it_is_late_by_part_of_the_interval(meetings):
    clock = Clock()
    found = saves(Timetable(10, clock), clock, [1.0] * 300 + [3.0] * 300)
    assert 600 <= next(iter(found.values())) < 700


def test_it_counts_from_a_save_for_another_reason(meetings):
    clock = Clock()
    timetable = Timetable(1, clock)
    timetable.restart(0)
    for step in range(1, 101):
        clock.now += 1.0
        assert not timetable.due(step)
        if step % 50 == 0:
            timetable.restart(step)


def test_without_minutes_nobody_meets(meetings):
    clock = Clock()
    assert saves(Timetable(None, clock), clock, [1e6] * 9) == {}
    assert meetings == []


def test_all_processes_save_where_the_clock_of_process_0_says(meetings, monkeypatch):
    clock = Clock()
    first = saves(Timetable(5, clock), clock, [0.7] * 1000)
    said = iter(list(meetings))
    monkeypatch.setattr(processes, "told_by", lambda process, mine: next(said))
    other = Clock(1e4)
    assert list(saves(Timetable(5, other), other, [0.9, 0.4] * 500)) == list(first)
    assert len(first) == 2
    assert next(said, None) is None


def test_a_run_saves_by_the_clock_and_ends_as_one_that_does_not(tmp_path):
    (tmp_path / "by_steps").mkdir()
    (tmp_path / "by_time").mkdir()
    keep = {"every": 12, "keep_newest": 9}
    assert train(make_config(tmp_path / "by_steps", checkpoint=keep)) == 0
    often = {"every_minutes": 1e-6}
    assert train(make_config(tmp_path / "by_time", checkpoint={**keep, **often})) == 0
    one, other = tmp_path / "by_steps" / "run", tmp_path / "by_time" / "run"
    saved = sorted(int(each.name) for each in (other / "checkpoints").iterdir())
    assert saved[-9:] == list(range(4, 13))
    assert results(other) == results(one)
    assert_same_arrays(saved_arrays(other, 12), saved_arrays(one, 12))


def test_what_is_always_kept_must_be_saved():
    assert CheckpointConfig(every=50, keep_every=200).keep_every == 200
    with pytest.raises(ValueError, match="keep_every 100 is not a multiple of every 30, so not"):
        CheckpointConfig(every=30, keep_every=100)
