"""Trackio, in its database on this machine (`TRACKIO_DIR`): `trackio show`."""

import os
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from jaxformer.errors import UserError
from jaxformer.evaluate.samples import Sample
from jaxformer.train.trackers.base import BEFORE_ALL, PROJECT, Position, TrackedRun, Values

PACKAGES = ("trackio",)
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


def check(directory: Path) -> None:
    for variable in ELSEWHERE:
        if os.environ.get(variable):
            raise UserError(
                f"run.trackers has trackio, which is kept on this machine, and {variable} is set; "
                f"unset it, and use `trackio sync` to publish the project"
            )


class Trackio:
    """A run of Trackio. A resumed run takes the place of the one before, and is told all rows."""

    holds = BEFORE_ALL

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        name = run.ids.get("trackio") or f"{run.name}-{uuid4().hex[:8]}"
        run.ids.keep("trackio", name)
        _remove(name)
        self._run = trackio.init(
            PROJECT,
            name=name,
            group=run.group,
            config=run.configuration,
            resume="never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, at: Position, values: Values) -> None:
        self._run.log(dict(values), step=at.step)

    def write_text(self, name: str, text: str, step: int) -> None:
        import trackio

        self._run.log({name: trackio.Markdown(f"```\n{text}\n```")}, step=step)

    def write_pictures(self, name: str, pictures: Sequence[Sample], step: int) -> None:
        """It has the text about them alone."""

    def close(self) -> None:
        self._run.finish()


def start(run: TrackedRun) -> Trackio:
    return Trackio(run)


def _remove(name: str) -> None:
    import trackio

    try:
        runs = list(trackio.Api().runs(PROJECT))
    except ValueError:  # the first of its project
        return
    for each in runs:
        if each.name == name:
            each.delete()
