"""How fast a model is imported, and how much memory that takes.

    python benchmarks/import.py [--parameters 1.3e9] [--dtype float32] [--folder FOLDER]

Writes a Llama of random numbers in shards, and a tiny one, into FOLDER (a temporary one if not
given; it needs three times the model's size). Reads the shards from one end to the other, then
imports them, each time after the system has been asked to drop them from its cache; prints the
speeds, and by how much the peak of resident memory is above that of the tiny model's import.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.checkpoint.interop.folder import INDEX
from jaxformer.checkpoint.interop.safetensors import size_of, write_file
from jaxformer.checkpoint.interop.source import TensorInfo

SHARD_BYTES = 1 << 30
PIECE = 1 << 22  # numbers that are made, or bytes that are read, at once


def config_of(parameters: float) -> dict:
    """A Llama of about so many parameters, with a vocabulary of 32,000."""
    layers = max(2, round((parameters / 5e4) ** (1 / 3.2)))
    width = next(
        width
        for width in range(64, 1 << 16, 64)
        if 64_000 * width + 12 * layers * width**2 >= parameters
    )
    return {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": width,
        "intermediate_size": 8 * width // 3 // 64 * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
    }


def tensors_of(config: dict, dtype: str) -> dict[str, TensorInfo]:
    width, hidden = config["hidden_size"], config["intermediate_size"]
    square = [f"self_attn.{name}_proj" for name in "qkvo"]
    layer = dict.fromkeys(square, (width, width))
    layer |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width)}
    layer |= {"mlp.down_proj": (width, hidden), "input_layernorm": (width,)}
    layer |= {"post_attention_layernorm": (width,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config["vocab_size"], width)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes |= {"model.norm": (width,), "lm_head": (config["vocab_size"], width)}
    return {f"{name}.weight": TensorInfo(shape, dtype) for name, shape in shapes.items()}


def pieces(info: TensorInfo, random: np.random.Generator) -> Iterator[np.ndarray]:
    left = int(np.prod(info.shape))
    while left:
        count = min(left, PIECE)
        yield random.standard_normal(count, np.float32).astype(info.dtype)
        left -= count


def write_model(folder: Path, parameters: float, dtype: str) -> list[Path]:
    """Write the model; → its shards."""
    folder.mkdir(parents=True)
    config = config_of(parameters)
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, TensorInfo]] = [{}]
    for name, info in tensors_of(config, dtype).items():
        if sum(map(size_of, shards[-1].values())) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = info
    random = np.random.default_rng(0)
    files = [folder / f"model-{index:05}.safetensors" for index in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        write_file(file, shard, (pieces(info, random) for info in shard.values()))
    index = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return files


def forget(files: list[Path]) -> None:
    """Write files to the disk and drop them from the system's cache."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_to_read(files: list[Path]) -> float:
    began = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.read(PIECE):
                pass
    return time.perf_counter() - began


class Imported(NamedTuple):
    seconds: float
    peak: float  # bytes


def imported(source: Path, out: Path) -> Imported:
    """Run the import in a process of its own."""
    program = "import sys; from jaxformer.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "import", str(source), str(out)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the import ended with {os.waitstatus_to_exitcode(status)}")
    return Imported(time.perf_counter() - began, usage.ru_maxrss * 1024.0)


def measure(folder: Path, parameters: float, dtype: str) -> None:
    files = write_model(folder / "model", parameters, dtype)
    forget(write_model(folder / "tiny", 5e6, dtype))
    total = sum(file.stat().st_size for file in files)
    tiny = imported(folder / "tiny", folder / "tiny_run")
    forget(files)
    reading = seconds_to_read(files)
    forget(files)
    whole = imported(folder / "model", folder / "run")
    print(f"model       {total / 1e9:.2f} GB of {dtype} in {len(files)} shards")
    print(f"disk        read at {total / reading / 1e6:,.0f} MB/s")
    for name, seconds in (
        ("import", whole.seconds),
        ("  less the tiny one's time", whole.seconds - tiny.seconds),
    ):
        share = reading / seconds
        print(f"{name:<28} {seconds:.1f} s, {total / seconds / 1e6:,.0f} MB/s, {share:.0%} of disk")
    print(
        f"peak memory {whole.peak / 2**20:,.0f} MiB, {(whole.peak - tiny.peak) / 2**20:,.0f} MiB "
        f"more than the tiny model's"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=1.3e9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(Path(folder), arguments.parameters, arguments.dtype)


if __name__ == "__main__":
    main()
