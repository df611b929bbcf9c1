"""`train.py`, but once a step is launched that the environment names, it waits to be killed."""

import os
import sys
import time

from jaxformer.cli import main
from jaxformer.train.recorder import Recorder

add = Recorder.add


def add_and_wait(self: Recorder, step: int, metrics: dict) -> None:
    add(self, step, metrics)
    if step == int(os.environ["WAIT_AFTER_STEP"]):
        time.sleep(600)


Recorder.add = add_and_wait
sys.exit(main(["train", *sys.argv[1:]]))
