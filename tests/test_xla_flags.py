"""The way around wrong products of XLA's CPU compiler, and the products themselves."""

import math
import os
import subprocess
import sys
from importlib.metadata import version

import jax
import pytest

from jaxformer import xla_flags
from jaxformer.xla_flags import FLAG, NAME, set_xla_flags
from tests.broadcast_product import errors
from tests.runs import REPOSITORY


def test_plain_jax_gets_products_with_a_broadcast_matrix_wrong_and_with_the_flag_right():
    """If the first half fails, jaxlib is mended: the flag has had its day."""
    plain = subprocess.run(
        [sys.executable, "-m", "tests.broadcast_product"],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(math.isnan(float(error)) for error in plain.stdout.split())
    assert FLAG in os.environ["XLA_FLAGS"]
    assert max(errors()) < 1e-5


@pytest.fixture
def flags(monkeypatch):
    """XLA_FLAGS after `set_xla_flags` found `given`, in a process whose JAX has not started."""
    monkeypatch.setattr(xla_flags, "_cpu_has_started", lambda: False)

    def after(given: str | None, jaxlib: str = version("jaxlib")) -> str | None:
        monkeypatch.setattr(xla_flags, "version", lambda package: jaxlib)
        if given is None:
            monkeypatch.delenv("XLA_FLAGS", raising=False)
        else:
            monkeypatch.setenv("XLA_FLAGS", given)
        set_xla_flags()
        return os.environ.get("XLA_FLAGS")

    return after


def test_the_flag_is_added_to_what_xla_flags_says(flags):
    assert flags(None) == FLAG
    assert flags("--xla_other=1") == f"--xla_other=1 {FLAG}"


def test_what_xla_flags_says_of_ynnpack_is_left_as_it_is(flags):
    assert flags(f"--{NAME}=") == f"--{NAME}="


def test_a_jaxlib_that_may_not_know_the_flag_is_not_given_it(flags):
    assert flags(None, jaxlib="0.9.2") is None
    assert flags(None, jaxlib="0.12.0.1") == FLAG
    assert flags(None, jaxlib="0.13.0") is None
    assert flags(None, jaxlib="1.0.0") is None


def test_a_jax_that_has_started_before_is_warned_of(monkeypatch):
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.warns(UserWarning, match="import jaxformer before the first use of JAX"):
        set_xla_flags()
