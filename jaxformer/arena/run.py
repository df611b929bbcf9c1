"""Run the cells of an arena, in one process or in several that share them."""

import contextlib
import io
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

import jaxformer
from jaxformer.arena.cells import DIVERGED, IMPOSSIBLE, Cell, Result
from jaxformer.checkpoint.lock import RunLocked
from jaxformer.errors import DoesNotFit, RunFailed, UserError
from jaxformer.evaluate.by_position import measure_on
from jaxformer.run import load
from jaxformer.terminal import say
from jaxformer.train.ending import DONE, FAILED
from jaxformer.train.interrupt import STOPPED
from jaxformer.train.metrics import read_rows
from jaxformer.train.run import train

PACKAGE = Path(jaxformer.__file__).parent


def run_cells(
    cells: Sequence[Cell], first: int = 0, report: Callable[[int], None] = lambda done: None
) -> int:
    """Train and measure every cell that has no result and that no other process is running.

    It begins with number `first` and wraps around; `report` gets the number of cells passed.

    Returns:
        The exit code: 0 if done; 1 if a cell failed for a reason unrelated to its contestant, which
        is printed, and the others were run; 75 if a signal stopped it: what was begun is saved, and
        resumes when run again.
    """
    code = DONE
    for done, cell in enumerate((*cells[first:], *cells[:first])):
        report(done)
        try:
            if not _ran(cell):
                return STOPPED
        except Exception as error:  # a full disk, a bug: no result, and no reason to stop
            say(f"{cell.name} failed: {_described(error)}")
            code = FAILED
    return code


def _ran(cell: Cell) -> bool:
    """Run the cell, unless it has a result or another process runs it; False if a signal stopped
    it."""
    with _claimed(cell) as mine:
        if mine and cell.result() is None and not cell.tried_file.exists():
            cell.tried_file.touch()
            with contextlib.suppress(RunLocked):  # a process on another host runs it
                result = _result_of(cell)
                if result is None:
                    return False
                cell.write_result(result)
    return True


@contextlib.contextmanager
def _claimed(cell: Cell) -> Iterator[bool]:
    """Claim the cell, and yield whether this process got it; others skip it meanwhile."""
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
    """The cell's result, or None if a signal stopped it. A contestant that diverges, or fits no
    device, has a result too: `failed` says so. Whatever else goes wrong is raised."""
    began = time.monotonic()
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            code = train(cell.config)
            if code == STOPPED:
                return None
            if code == FAILED:
                return {"failed": DIVERGED, "tests": []}
            run = load(cell.directory)
            tests = [
                {"multiple": test.multiple, "level": test.level, **measure_on(run, test.data)}
                for test in cell.held_out
            ]
    except DoesNotFit as error:
        return {"failed": f"{IMPOSSIBLE}{error}", "tests": []}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"failed": f"{IMPOSSIBLE}out of memory: {error}", "tests": []}
    except RunLocked:
        raise
    except Exception:
        said.write(traceback.format_exc())
        raise
    finally:
        cell.directory.mkdir(parents=True, exist_ok=True)
        with (cell.directory / "log.txt").open("a", encoding="utf-8") as log:
            log.write(said.getvalue())
    trained = [row for row in read_rows(cell.directory / "metrics.jsonl") if "loss" in row]
    return ended(
        tests,
        _curve(trained, "loss"),
        _curve(trained, "layers/max_violation"),
        step_seconds=trained[-1]["step_seconds"],
        tokens_per_second=trained[-1]["tokens_per_second"],
        seconds=time.monotonic() - began,
    )


def _described(error: Exception) -> str:
    """Its message, and where in this package it was raised, unless it is a project exception."""
    if isinstance(error, UserError | RunFailed):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    place = (ours or frames)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno} in {place.name})"


def _curve(rows: list[Result], metric: str) -> list[list[float]]:
    """[step, tokens, value] of the rows that have the metric."""
    return [[row["step"], row["tokens"], row[metric]] for row in rows if metric in row]


def ended(
    tests: list[Result],
    curve: list[list[float]],
    load_curve: list[list[float]],
    **speed: float,
) -> Result:
    """The result of a cell that was trained: tests by length, the curves of [step, tokens, loss],
    and, with experts, of the load of the busiest one."""
    curves = {"curve": curve} | ({"load_curve": load_curve} if load_curve else {})
    return {"failed": None, "tests": tests, **curves, **speed}
