import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import jax
import pytest

from jaxformer.cli import main
from jaxformer.cli.guard import guarded, output_may_close
from jaxformer.errors import UserError
from jaxformer.parallel.mesh import find_devices

REPOSITORY = Path(__file__).parents[1]


@contextmanager
def closed_pipe() -> Iterator[None]:
    """Standard output whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream, redirect_stdout(stream):
        yield


def test_an_error_that_nobody_foresaw_is_one_line_that_says_where(capsys, monkeypatch):
    monkeypatch.setattr("jaxformer.cli.data._data_prepare", lambda arguments: {}["key"])
    assert main(["data", "prepare", "c.yaml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: KeyError: 'key' (in jaxformer/cli/__init__.py, line ")
    assert err.endswith(
        "This is a bug in jaxformer: please report it with the traceback, which --debug shows\n"
    )
    assert err.count("\n") == 1
    assert main(["data", "prepare", "c.yaml", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/full/a"), "/full/a: No space left on device"),
        (MemoryError("Unable to allocate 8 TiB"), "out of memory: Unable to allocate 8 TiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: 8 TiB\nmore"), "out of memory: RESOURCE_EXHAUSTED: 8"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: writing a: No space left on device"),
            "No space left on device: RESOURCE_EXHAUSTED: writing a",
        ),
    ],
)
def test_what_the_machine_lacks_is_not_called_a_bug(error, message, capsys):
    def command() -> int:
        raise error

    assert guarded(command, debug=False) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert "bug" not in err


def test_characters_that_the_encoding_lacks_are_printed_as_escapes(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert guarded(lambda: print("a → \udcff"), debug=False) is None
    assert (tmp_path / "out").read_bytes() == b"a \\u2192 \\udcff\n"


def test_a_reader_that_closes_the_pipe_ends_a_command_quietly():
    program = (
        "import sys; from jaxformer.cli.guard import guarded; "
        "sys.exit(guarded(lambda: print('text') or 0, debug=False))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


@pytest.mark.parametrize("flush", [False, True])
def test_a_closed_pipe_is_quiet_however_the_command_prints(capsys, flush):
    with closed_pipe():
        assert guarded(lambda: print("text", flush=flush) or 0, debug=False) == 141
    assert capsys.readouterr().err == ""


def test_a_run_goes_on_without_its_output_and_keeps_its_exit_code():
    def command() -> int:
        with output_may_close():
            print("saving", flush=True)
            print("saved")
        return 75

    with closed_pipe():
        assert guarded(command, debug=False) == 75


def test_output_that_has_no_room_is_named(monkeypatch, capsys):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert guarded(lambda: print("text") or 0, debug=False) == 1
    assert capsys.readouterr().err == (
        "error: the output cannot be written: No space left on device\n"
    )


def test_output_that_was_closed_from_the_start_goes_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert guarded(lambda: sys.stdout.write("text") and 0, debug=False) == 0


@pytest.mark.parametrize("word", ["a\udcff", "\ud800"])
def test_a_prompt_that_is_no_text_is_refused(word, capsys):
    assert main(["generate", "run", "--prompt", word]) == 2
    assert f"argument --prompt: {word!a} is not text in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("platform", "error", "message"),
    [
        ("cuda", AssertionError(), r"'cuda', which JAX cannot use here: its plugin is not inst"),
        ("cqu", RuntimeError("no 'cqu'. (set JAX_PLATFORMS='')"), r"here: no 'cqu'\. Allowed: cpu"),
        ("cdua", RuntimeError("no"), r"Did you mean 'cuda'\?"),
        ("", RuntimeError("The TPU is in use"), r"JAX finds no device: The TPU is in use"),
    ],
)
def test_a_platform_that_is_not_there_is_named(platform, error, message, monkeypatch):
    def no_devices() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", no_devices)
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    with pytest.raises(UserError, match=message):
        find_devices()
