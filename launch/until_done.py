#!/usr/bin/env python3
"""Runs a command again for as long as it exits with 75, which means stopped with everything saved.
A restarted `python train.py` resumes from its newest checkpoint.

    launch/until_done.py python train.py configs/quickstart.yaml run.dir=/shared/run

SIGTERM and Ctrl-C reach the command once, as SIGTERM, and it is not started again. The exit code
is the command's own.
"""

import signal
import subprocess
import sys

STOPPED_WITH_EVERYTHING_SAVED = 75


def main(command: list[str]) -> int:
    """Returns the exit code of the command's last run; 128 + n if signal n killed it."""
    running: subprocess.Popen | None = None
    stopping = False

    def stop(*_) -> None:
        nonlocal stopping
        stopping = True
        if running is not None:
            running.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while True:
        # In its own process group, it gets a terminal's Ctrl-C only through `stop`: a second signal
        # would end it without saving.
        running = subprocess.Popen(command, process_group=0)
        if stopping:  # the signal came while it started, and `stop` did not know it yet
            running.terminate()
        code = running.wait()
        if code != STOPPED_WITH_EVERYTHING_SAVED or stopping:
            return code if code >= 0 else 128 - code
        print("stopped with everything saved; starting it again", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    sys.exit(main(sys.argv[1:]))
