"""Attention kernels: which one is chosen, and that they compute what `attend` does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.mixers import build_mixer
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.positions import RoPEConfig
from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Tokens, Visibility, attend
from jaxformer.ops.kernels import choice, cudnn, splash
from jaxformer.ops.kernels.registry import KERNELS, Kernel


def make_documents(length: int) -> Tokens:
    """A row of documents of 100, 1 and 60 tokens and padding, and a row of one."""
    lengths = [[100, 1, 60, length - 161], [length]]
    segments = [np.repeat([1, 2, 3, 0], lengths[0]), np.ones(length)]
    positions = [np.concatenate([np.arange(n) for n in row]) for row in lengths]
    order = jnp.arange(length)[None]
    return Tokens(order, *(jnp.asarray(np.stack(x), jnp.int32) for x in (positions, segments)))


def inputs(length: int, heads: int, kv_heads: int, head_dim: int, value_dim: int) -> list:
    shapes = [(heads, head_dim), (kv_heads, head_dim), (kv_heads, value_dim), (heads, value_dim)]
    keys = jax.random.split(jax.random.key(0), 4)
    return [
        jax.random.normal(key, (2, length, *shape)) for key, shape in zip(keys, shapes, strict=True)
    ]


def assert_same(by_kernel, q, k, v, d_y, tokens: Tokens, sink_logit=None, **options) -> None:
    """Outputs and gradients, within float32's rounding."""

    def results(function):
        y, pull = jax.vjp(function, q, k, v, sink_logit)
        return (y, *pull(d_y))

    def ours(q, k, v, sink):
        return by_kernel(q, k, v, tokens.positions, tokens.segment_ids, sink, **options)

    def definition(q, k, v, sink):
        return attend(q, k, v, tokens, tokens, sink_logit=sink, **options)

    made, expected = (jax.jit(partial(results, function))() for function in (ours, definition))
    names = ("y", "d_q", "d_k", "d_v", "d_sink")
    for name, a, b in zip(names, made, expected, strict=True):
        if b is None:
            continue
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * jnp.max(jnp.abs(b)), err_msg=name)


@pytest.fixture
def interpreted(monkeypatch):
    """Splash on a CPU."""
    make = partial(splash.library.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash.library, "make_splash_mha", make)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("parts", [8, 0], ids=["fused", "split"])
def test_splash_equals_attend(parts, is_causal, interpreted, monkeypatch):
    """Odd lengths, values narrower than keys, and one key-value head; windows, soft-cap, groups, a
    sink's logit."""
    monkeypatch.setattr(splash, "LONGEST", 128)  # two blocks
    monkeypatch.setattr(splash, "MOST_PARTS", parts)
    length, window, softcap, heads = (201, None, None, (2, 1)) if parts else (256, 70, 2.0, (4, 2))
    visibility = Visibility(window, is_causal=is_causal)
    options = {"visibility": visibility, "scale": 0.4, "logit_softcap": softcap}
    rows = inputs(length, *heads, head_dim=8, value_dim=4)
    sink = jnp.linspace(-1.0, 3.0, heads[0])
    assert_same(splash.attend, *rows, make_documents(length), sink, **options)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
def test_what_cudnn_is_asked_equals_attend(is_causal, monkeypatch):
    real, asked = jax.nn.dot_product_attention, []

    def on_cpu(*arrays, implementation, **options):
        asked.append(implementation)
        return real(*arrays, **options, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    options = {"visibility": Visibility(70, 2, is_causal), "scale": 0.4}
    assert_same(cudnn.attend, *inputs(180, 4, 2, 8, 8), make_documents(180), **options)
    assert set(asked) == {"cudnn"}


def test_prefill_of_an_empty_cache_is_by_kernel_and_equals_that_without(interpreted, monkeypatch):
    config = AttentionConfig(num_heads=2, num_kv_heads=1, window=50)
    x = jax.random.normal(jax.random.key(0), (1, 256, 8))
    rows = RowInfo(jnp.arange(256)[None], jnp.ones((1, 256), jnp.int32))
    calls = []
    monkeypatch.setattr(
        splash, "attend", lambda *a, f=splash.attend, **k: (calls.append(0), f(*a, **k))[1]
    )

    def pieces() -> jax.Array:
        """Of two pieces of the sequence, one after the other."""
        mixer = build_mixer(config, Dims(8, 1, InitConfig(), "float32"), RoPEConfig(), parent=None)
        params = mixer.init(jax.random.key(1), x, rows)
        step = jax.jit(lambda x, rows, cache: mixer.apply(params, x, rows, cache))
        cache, outputs = mixer.init_cache(1, 256, "float32"), []
        for piece in (slice(0, 128), slice(128, 256)):
            part = jax.tree.map(lambda array, piece=piece: array[:, piece], rows)
            y, cache = step(x[:, piece], part, cache)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=1)

    expected = pieces()
    assert calls == []
    kernel = Kernel("cpu", splash.obstacle, splash.attend)
    monkeypatch.setitem(KERNELS["attention"], "splash", kernel)
    np.testing.assert_allclose(pieces(), expected, rtol=0, atol=1e-7)
    assert calls == [0]


def chosen(platform: str, kernel: str = "auto", dtype="bfloat16", **options) -> str:
    length, context = options.pop("length", 128), options.pop("context", 1)
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    mesh = AbstractMesh((2, context), ("fsdp", "context"), abstract_device=device)
    q, v = (jax.ShapeDtypeStruct((1, length, heads, 64), dtype) for heads in (4, 2))
    options = {"visibility": Visibility(), **options}
    with jax.sharding.use_abstract_mesh(mesh):
        return str(choice.choose(kernel, q, v, **options))


def test_the_platform_of_the_mesh_chooses_and_a_kernel_that_cannot_serve_is_told_why():
    assert chosen("tpu") == "splash"
    assert chosen("tpu", visibility=Visibility(64), logit_softcap=30.0) == "splash"
    assert chosen("cpu") == "xla: no kernel for cpu"
    assert chosen("tpu", kernel="xla") == "xla: asked for"
    assert chosen("tpu", visibility=Visibility(64, 4)) == "xla: splash does not support sinks"
    assert chosen("tpu", slopes=np.ones(4)) == "xla: no kernel supports ALiBi"
    assert chosen("gpu", max_distance=128) == "xla: no kernel supports relative positions"
    assert chosen("tpu", log_forget=np.ones(4)) == "xla: no kernel supports forget gates"
    assert chosen("tpu", dtype="float64") == "xla: it computes in float32, not in float64"
    assert chosen("tpu", length=64) == (
        "xla: rows of 64 tokens are shorter than its smallest block, 128"
    )
    assert chosen("tpu", context=2) == (
        "xla: rows are split over mesh.context, where keys pass around a ring"
    )
    assert chosen("gpu", dtype="float32") == "xla: it takes bfloat16, not float32"
    assert chosen("gpu", logit_softcap=30.0) == "xla: cuDNN does not support logit_softcap"
    assert chosen("gpu") == (
        "xla: it needs an NVIDIA GPU of compute capability 8.0 or more, and this has none"
    )


def test_asking_for_a_kernel_that_cannot_serve_is_an_error():
    with pytest.raises(ValueError, match="^it cannot serve: it is not for gpu devices$"):
        chosen("gpu", kernel="splash")
    with pytest.raises(ValueError, match="^it cannot serve: splash does not support sinks$"):
        chosen("tpu", kernel="splash", visibility=Visibility(64, 4))


@pytest.mark.parametrize(
    ("length", "window", "bytes_per_token", "queries", "keys", "fused"),
    [
        (8192, None, 512, 1024, 2048, True),  # Llama 3 8B
        (16384, None, 512, 1024, 4096, True),
        (65536, None, 512, 1024, 1024, False),
        (8192, None, 1024, 1024, 2048, True),  # heads of 256
        (1152, None, 512, 384, 384, True),
        (8192, 512, 512, 512, 512, False),
        (4096, 1024, 512, 1024, 1024, True),
        (128, None, 512, 128, 128, True),
    ],
)
def test_blocks_divide_the_row_and_fit(length, window, bytes_per_token, queries, keys, fused):
    blocks = splash._blocks(length, window, bytes_per_token)
    assert (blocks.block_q, blocks.block_kv_dkv, blocks.use_fused_bwd_kernel) == (
        queries,
        keys,
        fused,
    )
