"""MLflow: the server or database of MLFLOW_TRACKING_URI, or else `RUN/mlflow.db`."""

import os
import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from jaxformer.checkpoint.run_directory import flat
from jaxformer.errors import UserError
from jaxformer.evaluate.samples import Sample
from jaxformer.paths import is_remote
from jaxformer.train.trackers.base import BEFORE_ALL, PROJECT, Position, TrackedRun, Values

PACKAGES = ("mlflow", "sqlalchemy", "alembic")

URI = "MLFLOW_TRACKING_URI"
# What MLflow allows at once, in a parameter, and in a tag.
BATCH, LONGEST_PARAMETER, LONGEST_TAG = 100, 6000, 5000


def check(directory: Path) -> None:
    if is_remote(directory) and not os.environ.get(URI):
        raise UserError(
            f"run.trackers has mlflow, and run.dir {directory} is in a bucket, where no database "
            f"can be; set {URI} to your server's address"
        )


class MLflow:
    """A run of MLflow, which a resumed run goes on with.

    The metric `row` says which row of its step a row is. MLflow writes a row whole or not at all.
    """

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        address = _address(run)
        with _alone(address):
            self._client = MlflowClient(address)
            self._id = run.ids.get("mlflow") or self._begin(run)
        run.ids.keep("mlflow", self._id)
        self._client.update_run(self._id, status="RUNNING")
        self._send_parameters(run.configuration)
        rows = self._client.get_metric_history(self._id, "row")
        self.holds = max((Position(row.step, int(row.value)) for row in rows), default=BEFORE_ALL)
        run.say(f"mlflow     run {self._id} in {_shown(run)}")

    def _begin(self, run: TrackedRun) -> str:
        tags = {"group": run.group} if run.group else {}
        experiment = self._experiment(run)
        return self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id

    def _experiment(self, run: TrackedRun) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        place = None if os.environ.get(URI) or not run.folder else run.folder / "mlflow"
        if (known := self._client.get_experiment_by_name(name)) is not None:
            return known.experiment_id
        try:
            return self._client.create_experiment(name, place.as_uri() if place else None)
        except MlflowException:  # another run has just created it, or it is a fault
            if (known := self._client.get_experiment_by_name(name)) is not None:
                return known.experiment_id
            raise

    def _send_parameters(self, configuration: dict[str, Any]) -> None:
        """Send those that the run does not have yet; MLflow refuses to change the others."""
        from mlflow.entities import Param

        known = self._client.get_run(self._id).data.params
        new = [
            Param(name, str(value)[:LONGEST_PARAMETER])
            for key, value in flat(configuration).items()
            if (name := _allowed(key)) not in known
        ]
        for start in range(0, len(new), BATCH):
            self._client.log_batch(self._id, params=new[start : start + BATCH], synchronous=True)

    def write(self, at: Position, values: Values) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = {**values, "row": at.row}
        metrics = [Metric(_allowed(name), value, now, at.step) for name, value in rows.items()]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def write_text(self, name: str, text: str, step: int) -> None:
        self._client.set_tag(self._id, name, text[:LONGEST_TAG])

    def write_pictures(self, name: str, pictures: Sequence[Sample], step: int) -> None:
        """It has the text about them alone."""

    def close(self) -> None:
        self._client.set_terminated(self._id)


def start(run: TrackedRun) -> MLflow:
    return MLflow(run)


def _address(run: TrackedRun) -> str:
    return os.environ.get(URI) or f"sqlite:///{run.folder}/mlflow.db"


def _alone(address: str) -> AbstractContextManager[object]:
    """Runs of several processes that begin at once spoil an SQLite file that is not there yet."""
    scheme, _, file = address.partition(":///")
    return FileLock(f"{file}.lock") if scheme == "sqlite" else nullcontext()


def _shown(run: TrackedRun) -> str:
    return f"${URI}" if os.environ.get(URI) else _address(run)


def _allowed(name: str) -> str:
    """The name without the characters that MLflow refuses."""
    return re.sub(r"[^\w./: -]", "_", name)
