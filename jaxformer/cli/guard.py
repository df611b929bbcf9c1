"""The outermost guard: whatever fails inside a command becomes one message and an exit code."""

import errno
import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

import jaxformer
from jaxformer.errors import RunFailed, UserError

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
CLOSED_PIPE = 141  # 128 + SIGPIPE, as shells count it
LONGEST_MESSAGE = 500


def guarded(command: Callable[[], int], *, debug: bool) -> int:
    """Run a command and return its exit code, with nothing left to print when the process ends.

    A reader that has closed the pipe, as `head` does, ends the command quietly.
    """
    _make_output_safe()
    try:
        code = _answered(command, debug=debug)
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:  # from printing: `_answered` handles all others
        closed = isinstance(error, BrokenPipeError)
        if not closed:
            with suppress(OSError):
                print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            _discard(stream)
        return CLOSED_PIPE if closed else FAILED
    return code


def _answered(command: Callable[[], int], *, debug: bool) -> int:
    try:
        return command()
    except (UserError, RunFailed) as error:
        tell(error, debug=debug)
        return BAD_INPUT if isinstance(error, UserError) else FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse, after it printed help or the version
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return FAILED
        return stop.code or DONE
    except Exception as error:
        if isinstance(error, OSError) and _output_fails():
            raise
        tell(error, debug=debug)
        return FAILED


def tell(error: Exception, *, debug: bool = False) -> None:
    """Print what went wrong and, with `debug`, where."""
    if debug:
        traceback.print_exception(error)
    print(f"error: {_in_words(error)}", file=sys.stderr)


def _in_words(error: Exception) -> str:
    """The message of an error. If it is not a project exception, the machine or a bug caused it."""
    if isinstance(error, UserError | RunFailed):
        return str(error)
    message = str(error).strip().partition("\n")[0][:LONGEST_MESSAGE]
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or message}{_place_of(error)}"
    if (full := os.strerror(errno.ENOSPC)) in message:  # XLA's kind of error is that of memory
        return f"{full}: {message}{_place_of(error)}"
    if isinstance(error, MemoryError) or message.startswith("RESOURCE_EXHAUSTED"):
        return f"out of memory: {message or 'the machine has no more'}{_place_of(error)}"
    return (
        f"{type(error).__name__}: {message or 'no message'}{_place_of(error)}. This is a bug in "
        f"jaxformer: please report it with the traceback, which --debug shows"
    )


def _place_of(error: Exception) -> str:
    """The innermost line of this package that the error came through."""
    root = Path(jaxformer.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if (file := Path(frame.filename)).is_relative_to(root):
            return f" (in {file.relative_to(root.parent)}, line {frame.lineno})"
    return ""


def _make_output_safe() -> None:
    """Escape what the terminal's encoding cannot show, instead of failing. Discard what is printed
    to a stream that was closed from the start, so that it does not end up in a file that was
    opened in its place."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = io.BufferedWriter(io.FileIO(os.devnull, "w"))
            setattr(sys, name, io.TextIOWrapper(nowhere, encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def output_may_close() -> Iterator[None]:
    """Inside this context, what is printed to a closed or full output is dropped and stops nothing:
    at Ctrl-C, `tee` is gone before the run that writes to it has saved."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Unstoppable(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class _Unstoppable:
    """A stream that discards everything after its first error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _discard(stream: TextIO) -> None:
    """Discard what the stream still holds, and everything written to it later."""
    descriptor = _descriptor(stream)
    if descriptor is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


def _output_fails() -> bool:
    """Whether output can no longer be written, or nobody reads it."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return True
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        descriptor = _descriptor(stream)
        if descriptor is not None:
            poll.register(descriptor, 0)  # errors are reported unasked
    return bool(poll.poll(0))


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError):  # in memory, as in tests and notebooks
        return None
