"""TensorBoard: event files in `RUN/tensorboard`."""

from collections.abc import Sequence
from pathlib import Path

from jaxformer.evaluate.samples import Sample
from jaxformer.train.trackers.base import Position, TrackedRun, Values

PACKAGES = ("tensorboardX",)


def check(directory: Path) -> None:
    return None


class TensorBoard:
    """Scalars by step in `directory`; those after the resumed step are dropped from earlier
    files."""

    def __init__(self, directory: Path, resumed_step: int, holds: Position) -> None:
        from tensorboardX import SummaryWriter

        self.holds = holds
        self._writer = SummaryWriter(str(directory), purge_step=resumed_step + 1)

    def write(self, at: Position, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=at.step)

    def write_text(self, name: str, text: str, step: int) -> None:
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # as it is, in Markdown
        self._writer.add_text(name, indented, global_step=step)

    def write_pictures(self, name: str, pictures: Sequence[Sample], step: int) -> None:
        for number, each in enumerate(pictures, start=1):
            self._writer.add_image(f"{name}/{number}", each.pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def start(run: TrackedRun) -> TensorBoard:
    return TensorBoard(run.directory / "tensorboard", run.resumed_step, run.last_row)
