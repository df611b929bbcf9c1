"""The way around wrong products of XLA's CPU compiler, and the products themselves."""

import math
import os
import re
import subprocess
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import pytest

from jaxformer import xla_flags
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import build_model
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


def test_a_fresh_rwkv7_closed_over_has_no_product_that_is_fused_with_a_broadcast():
    """Its output weights start at zero, which XLA sees where layers are scanned. Smaller models
    have no such product; without the flag this one's is NaN if what lies behind a zero is."""
    model = build_model(
        ModelConfig.model_validate(
            {
                "d_model": 128,
                "num_layers": 2,
                "mixer": {"kind": "rwkv7"},
                "ffn": None,
                "positions": {"kind": "none"},
                "init": {"std": "fan_in", "output": "zero"},
            }
        ),
        vocab_size=16,
    )
    tokens = jnp.arange(64)[None] % 16
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    program = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    compiled = program.lower(tokens).compile()
    fusions = fused_by_ynnpack(compiled.as_text())
    assert any("dot" in operations for operations in fusions)
    assert not any({"dot", "broadcast"} <= operations for operations in fusions)
    assert jnp.isfinite(compiled(tokens)).all()


def fused_by_ynnpack(program: str) -> list[set[str]]:
    """The operations of each fusion of a compiled program that YNNPACK computes."""
    bodies = dict(re.findall(r"^%(\S+) .*?\{\n(.*?)^\}", program, re.DOTALL | re.MULTILINE))
    called = re.findall(r'calls=%(\S+?),.*"__ynn_fusion"', program)
    return [set(re.findall(r"= \S+ ([\w-]+)\(", bodies[name])) for name in called]


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
