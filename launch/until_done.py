#!/usr/bin/env python3
"""Runs a command again for as long as it ends with 75: stopped with everything saved. A restarted
`python train.py` goes on from its newest checkpoint.

    launch/until_done.py python train.py configs/quickstart.yaml run.dir=/shared/run

SIGTERM and Ctrl-C reach the command once as SIGTERM, and end it for good. Ends with the command's
own code.
"""

import signal
import subprocess
import sys

STOPPED_WITH_EVERYTHING_SAVED = 75


def main(command: list[str]) -> int:
    """Returns the code that the command's last run ended with; 128 + n where signal n killed it."""
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
        # Of a group of its own, a terminal's Ctrl-C reaches it through `stop` alone: a second
        # signal would end it without saving.
        running = subprocess.Popen(command, process_group=0)
        if stopping:  # while it started: `stop` did not know it yet
            running.terminate()
        code = running.wait()
        if code != STOPPED_WITH_EVERYTHING_SAVED or stopping:
            return code if code >= 0 else 128 - code
        print("stopped with everything saved; going on", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    sys.exit(main(sys.argv[1:]))
