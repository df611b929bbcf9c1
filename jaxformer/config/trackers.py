"""The names of trackers; `train/trackers/` has a module for each."""

from typing import Literal

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
