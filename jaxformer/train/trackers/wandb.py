"""Weights & Biases, online or offline, as WANDB_MODE and its other variables say.

Every row is a step of W&B's own, and has the training step in `step`, which charts are drawn by.
"""

import html
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from jaxformer.errors import UserError
from jaxformer.evaluate.samples import Sample
from jaxformer.train.trackers.base import BEFORE_ALL, PROJECT, Position, TrackedRun, Values
from jaxformer.train.trackers.follower import CLOSE_SECONDS

PACKAGES = ("wandb",)
OFFLINE = ("offline", "dryrun")


def check(directory: Path) -> None:
    import wandb

    if _settings().mode in (*OFFLINE, "disabled"):
        return
    try:
        is_logged_in = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        raise UserError(f"run.trackers has wandb: {error}") from None
    if not is_logged_in:
        raise UserError(
            "run.trackers has wandb, and there is no key for it: run `wandb login` or set "
            "WANDB_API_KEY; or set WANDB_MODE=offline, to upload later with `wandb sync`"
        )


class WandB:
    """A run of W&B, which a resumed run goes on with."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        settings = _settings()
        identifier = run.ids.get("wandb")
        if settings.mode in OFFLINE and identifier is not None:
            folder = Path(settings.wandb_dir) if run.folder is None else run.folder / "wandb"
            identifier = identifier if _takes_back(folder, identifier) else None
        identifier = identifier or uuid4().hex[:8]
        run.ids.keep("wandb", identifier)
        self._run = wandb.init(
            project=settings.project or PROJECT,
            dir=run.folder,
            id=identifier,
            name=run.name,
            group=run.group,
            config=run.configuration,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, finish_timeout=CLOSE_SECONDS),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("row", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self.holds = _last_row(dict(self._run.summary))
        place = f"upload with: wandb sync {self._run.sync_dir}" if self._run.offline else ""
        run.say(f"wandb      {self._run.url or place}")

    def write(self, at: Position, values: Values) -> None:
        self._run.log({**values, "step": at.step, "row": at.row})

    def write_text(self, name: str, text: str, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>"), "step": step})

    def write_pictures(self, name: str, pictures: Sequence[Sample], step: int) -> None:
        import wandb

        images = [wandb.Image(each.pixels, caption=each.caption) for each in pictures]
        self._run.log({name: images, "step": step})

    def close(self) -> None:
        self._run.finish()


def start(run: TrackedRun) -> WandB:
    return WandB(run)


def _settings() -> Any:
    """As the environment and the files of W&B say."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings


def _last_row(summary: dict[str, Any]) -> Position:
    """What the server holds of a resumed run; nothing, offline, where each start writes all."""
    if "row" not in summary:
        return BEFORE_ALL
    return Position(int(summary["step"]), int(summary["row"]))


def _takes_back(folder: Path, identifier: str) -> bool:
    """Remove the offline files of earlier starts, since the next one writes them whole.

    False if they were uploaded or are not here: `wandb sync` would append to the run of that name,
    so the next start must be another run.
    """
    earlier = [each for each in folder.glob(f"offline-run-*-{identifier}*") if each.is_dir()]
    if not earlier or any(True for each in earlier for _ in each.glob("*.synced")):
        return False
    for each in earlier:
        shutil.rmtree(each)
    return True
