"""`metrics.jsonl`, the authoritative record of a run's metrics."""

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxformer.errors import RunFailed, UserError
from jaxformer.paths import is_remote, replace_text
from jaxformer.reading import read_json_object

Row = Mapping[str, float | int | None]

TIMING_FIELDS = ("tokens_per_second", "step_seconds", "mfu")


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, in the order of the steps.

    Training rows have `step, loss, learning_rate, grad_norm, tokens, tokens_per_second,
    step_seconds, mfu` (and `nonfinite`, the updates skipped in a row, `z_loss` if used, and where
    devices tell it, MEMORY_FIELDS of process 0's fullest one); evaluation rows have `step,
    eval/loss` and the figures of `Evaluation`; rows of suites have `step, suite/TASK/METRIC`;
    rows of layers have `step, layer, activation_rms, gradient_rms, update_rms, weight_rms,
    parameters`, and the last of them, with a null layer, is for all parameters outside the layers.
    A number that is not finite is null. Apart from TIMING_FIELDS and MEMORY_FIELDS, a row depends
    on its step alone, not on when a run was resumed. A file in a bucket cannot be appended to:
    there, `sync` and `close` write all of it again.
    """

    def __init__(self, path: Path, resumed_step: int, *, writes: bool = True) -> None:
        """Open for appending; rows after `resumed_step` are dropped, for they will come again.

        Only one of several processes writes; the others know the same evaluations.
        """
        rows = [row for row in read_rows(path) if row["step"] <= resumed_step]
        self._eval_losses = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
        self._measured = {row["step"] for row in rows if _is_of_suites(row)}
        self._path = path
        self._file: TextIO | None = None
        if writes:
            text = "".join(_line(row) for row in rows)
            replace_text(path, text)
            if is_remote(path):
                self._file = io.StringIO()
                self._file.write(text)
            else:
                self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append one row; on a disk, the operating system has it when this returns.

        Raises:
            RunFailed: it could not be written.
        """
        if self._file:
            try:
                self._file.write(_line(row))
                self._file.flush()
            except OSError as error:
                raise RunFailed(
                    f"{self._path} cannot be written: {error.strerror}. The checkpoints are "
                    f"as they were"
                ) from error
        if "eval/loss" in row:
            self._eval_losses[row["step"]] = row["eval/loss"]
        if _is_of_suites(row):
            self._measured.add(row["step"])

    def has_suites(self, step: int) -> bool:
        return step in self._measured

    def has_evaluation(self, step: int) -> bool:
        return step in self._eval_losses

    def eval_loss(self, step: int) -> float | None:
        """The validation loss at `step`; None if there was no evaluation, or it is not finite."""
        return self._eval_losses.get(step)

    def sync(self) -> None:
        """Force the rows onto the disk, before a checkpoint that comes after them is saved."""
        if isinstance(self._file, io.StringIO):
            replace_text(self._path, self._file.getvalue())
        elif self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        if self._file:
            self._file.close()


def _is_of_suites(row: Row) -> bool:
    return any(key.startswith("suite/") for key in row)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file; a last line that a kill cut short is left out.

    Raises:
        UserError: a line before the last one is not a row.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = read_json_object(line, place)
    except UserError as error:
        raise UserError(f"{error}; fix or remove the line") from None
    if type(row.get("step")) is not int:
        raise UserError(f"{place} has no step, which every line of metrics has; remove the line")
    for key, value in row.items():
        if not isinstance(value, int | float | None):
            raise UserError(f"{place}: {key} is not a number; fix or remove the line")
    return row


def _line(row: Row) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
