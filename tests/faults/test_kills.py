"""`kill -9`, again and again in one run: while it starts, between steps, and within saves."""

import random
import signal
import time

from tests.faults.disturbed import unfinished, wait_for_rows, wait_for_save


def test_killed_at_random_moments_and_within_saves_a_run_ends_as_if_it_had_been_left_alone(
    undisturbed, kills
):
    run = undisturbed.run.with_name("killed")
    moment = random.Random(0)
    within_saves = 0
    for number in range(kills):
        process, began = undisturbed.start(run), time.monotonic()
        match number % 3:
            case 0:
                wait_for_rows(run, 2, process)
                start = time.monotonic() - began
                wait_for_save(run, process)
            case 1:
                wait_for_rows(run, 2, process)
                time.sleep(moment.uniform(0.0, 0.6))
            case 2:
                time.sleep(moment.uniform(0.0, start))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        within_saves += number % 3 == 0 and bool(unfinished(run))
    assert within_saves >= max(1, kills // 6)
    undisturbed.complete(run)
    undisturbed.assert_equals(run)
