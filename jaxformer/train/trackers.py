"""Metrics shown elsewhere during a run. A tracker that fails never stops a run."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from jaxformer.train.metrics import Row


class Tracker(Protocol):
    """Something that shows metrics."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Scalars by step in `directory`, those of training under `train/`, those of a layer under
    `layer_3/`."""

    def __init__(self, directory: Path, resumed_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=resumed_step + 1)

    def write(self, row: Row) -> None:
        group = "train"
        if "layer" in row:
            group = "outside_layers" if row["layer"] is None else f"layer_{row['layer']}"
        for key, value in row.items():
            if key not in ("step", "layer") and value is not None:
                name = key if "/" in key else f"{group}/{key}"
                self._writer.add_scalar(name, value, global_step=row["step"])

    def close(self) -> None:
        self._writer.close()


class Guarded:
    """A tracker that warns at its first failure and is silent from then on."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._attempt(lambda: setattr(self, "_tracker", make()))

    def write(self, row: Row) -> None:
        if (tracker := self._tracker) is not None:
            self._attempt(lambda: tracker.write(row))

    def close(self) -> None:
        if (tracker := self._tracker) is not None:
            self._attempt(tracker.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, the run is worth more
            self._tracker = None
            warnings.warn(f"{self._name} failed and is off from here on: {error}", stacklevel=3)
