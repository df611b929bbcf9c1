"""Running the cells of an arena, by one process or by several that share them."""

import contextlib
import io
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from jaxformer.arena.cells import Cell, Result
from jaxformer.checkpoint.lock import RunLocked
from jaxformer.evaluate.by_position import measure_on
from jaxformer.run import load
from jaxformer.schema import UserError
from jaxformer.train.ending import FAILED
from jaxformer.train.interrupt import STOPPED
from jaxformer.train.loop import train
from jaxformer.train.metrics import read_rows


def run_cells(
    cells: Sequence[Cell], first: int = 0, report: Callable[[int], None] = lambda done: None
) -> bool:
    """Train and measure every cell that has no result and that no other process is at, beginning
    with number `first` and going round; `report` gets the number of those that are behind it.

    Returns:
        False where a signal ended it: what was begun is saved, and goes on when run again.
    """
    for done, cell in enumerate((*cells[first:], *cells[:first])):
        report(done)
        with _claimed(cell) as mine:
            if mine and cell.result() is None:
                with contextlib.suppress(RunLocked):  # a process of another host is at it
                    result = _result_of(cell)
                    if result is None:
                        return False
                    cell.write_result(result)
    return True


@contextlib.contextmanager
def _claimed(cell: Cell) -> Iterator[bool]:
    """Whether this process is the one to run the cell; others leave it alone meanwhile."""
    from filelock import FileLock, Timeout

    lock = FileLock(cell.directory.parent / f".{cell.directory.name}.claim")
    cell.directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _result_of(cell: Cell) -> Result | None:
    """The cell's result, or None if a signal stopped it. A cell that cannot be trained is a result
    as well: `failed` says why."""
    began = time.monotonic()
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            code = train(cell.config)
            if code == STOPPED:
                return None
            if code == FAILED:
                return {"failed": "diverged", "tests": []}
            run = load(cell.directory)
            tests = [
                {"multiple": test.multiple, "level": test.level, **measure_on(run, test.data)}
                for test in cell.held_out
            ]
    except RunLocked:
        raise
    except UserError as error:
        return {"failed": str(error), "tests": []}
    except Exception:
        return {"failed": traceback.format_exc(limit=4), "tests": []}
    finally:
        cell.directory.mkdir(parents=True, exist_ok=True)
        with (cell.directory / "log.txt").open("a", encoding="utf-8") as log:
            log.write(said.getvalue())
    trained = [row for row in read_rows(cell.directory / "metrics.jsonl") if "loss" in row]
    return ended(
        tests,
        [[row["step"], row["tokens"], row["loss"]] for row in trained],
        step_seconds=trained[-1]["step_seconds"],
        tokens_per_second=trained[-1]["tokens_per_second"],
        seconds=time.monotonic() - began,
    )


def ended(tests: list[Result], curve: list[list[float]], **speed: float) -> Result:
    """The result of a cell that was trained: tests by length, the curve of [step, tokens, loss]."""
    return {"failed": None, "tests": tests, "curve": curve, **speed}
