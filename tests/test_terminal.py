import os
import subprocess
import sys

import pytest

from jaxformer import terminal
from jaxformer.terminal import progress

BAR = """
from jaxformer.terminal import progress
with progress("tokenising", 10) as report:
    report(5)
"""


def test_quick_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("tokenising", 10) as report:
        report(5)
    assert capsys.readouterr().err == ""


def test_long_work_prints_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "FIRST_LINE_SECONDS", 0.0)
    with progress("tokenising", 10) as report:
        report(2)
        report(3)
    assert capsys.readouterr().err == "tokenising: 20% after 0 s\n"
    monkeypatch.setattr(terminal, "NEXT_LINE_SECONDS", 0.0)
    with progress("tokenising", 0) as report:
        report(0)
        report(0)
    assert capsys.readouterr().err == "tokenising: 0% after 0 s\n" * 2


def test_the_time_left_counts_what_this_run_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 30.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with progress("cells", 100) as report:
        report(40)
        report(60)
    assert capsys.readouterr().err == "cells: 60% after 30 s, about 60 s left\n"


def test_a_terminal_shows_a_bar() -> None:
    terminal, process_end = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", BAR], stderr=process_end, env=environment, check=True)
    shown = os.read(terminal, 10_000).decode()
    os.close(process_end)
    os.close(terminal)
    assert "tokenising" in shown
    assert "50%" in shown
