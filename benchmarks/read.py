"""How fast rows are read, from a disk and from a bucket, beside the training that they feed.

    python benchmarks/read.py [--rows 20000] [--steps 200]

The store is the built-in corpus as bytes, the rows those of `benchmarks/step.py`. The bucket is an
emulator in a process of its own on this machine, so that its figures are those of requests and of
the cache, not of a network. `alone` is a process that holds all rows of a batch, `of eight` one
that holds an eighth of them and fetches no others, row by row; `cold` begins with an empty cache,
`warm` with all of these rows in it. At the end a run trains from the bucket, and tells how long it
waited for data.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from step import SIZES, configuration, project_step, seconds

from jaxformer.config import DataConfig
from jaxformer.data.loader import iterate, train_batches
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.parallel import processes
from jaxformer.train.run import train

TARGET = 200  # times the tokens per second of training
MOST_WAITING = 0.01  # of a run's time
BUCKET = "gs://bench/stores"


def serve(port: Any) -> None:
    import socketserver

    from gcp_storage_emulator.server import create_server

    # Of more than five connections at once, it would drop some, which wait a second then.
    socketserver.TCPServer.request_queue_size = 128
    server = create_server("localhost", 0, in_memory=True, default_bucket="bench")
    server.start()
    port.send(server._api._httpd.server_port)
    port.recv()
    server.stop()


@contextlib.contextmanager
def bucket() -> Any:
    """While it lasts, gs:// leads to an emulator."""
    spawn = multiprocessing.get_context("spawn")
    ours, its = spawn.Pipe()
    process = spawn.Process(target=serve, args=(its,))
    process.start()
    os.environ |= {
        "STORAGE_EMULATOR_HOST": f"http://localhost:{ours.recv()}",
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    try:
        yield
    finally:
        ours.send(None)
        process.join()


def rate(data: DataConfig, rows: int, held: int) -> float:
    """Tokens per second that a process reads, which holds so many rows of each batch."""
    batch = SIZES.batch
    stores = Stores(data, load_tokenizer(data.tokenizer))
    batches = iterate(
        train_batches(stores, batch_size=batch, seed=0, held=np.arange(held)),
        0,
        prefetch=4,
        threads=stores.reading_threads,
    )
    began = time.perf_counter()
    for _ in range(rows // held):
        next(batches)
    spent = time.perf_counter() - began
    batches.close()
    return rows // held * held * data.sequence_length / spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000, help="rows that are read, each time")
    parser.add_argument("--steps", type=int, default=200, help="of the run at the end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, bucket():
        folder = Path(name)
        config = configuration(folder / "run", arguments.steps)
        step, _ = project_step(config)
        training = SIZES.batch * SIZES.length / min(seconds(step, 10))
        print(f"training: {training:,.0f} tokens/s")

        def data_of(**keys: Any) -> DataConfig:
            data = config.data.model_dump() | {"cache_dir": str(folder / "cache")} | keys
            return DataConfig.model_validate(data)

        remote = {"store_dir": BUCKET}
        part = SIZES.batch // 8
        rate(data_of(), 100, SIZES.batch)
        rate(data_of(**remote), 100, SIZES.batch)
        for title, keys, held, count in (
            ("disk", {}, SIZES.batch, 1),
            ("bucket, alone", remote, SIZES.batch, 1),
            ("bucket, of eight", remote, part, 8),
            ("bucket, of eight, length 2,048", remote | {"sequence_length": 2048}, part, 8),
        ):
            shutil.rmtree(folder / "cache" / "rows", ignore_errors=True)
            rows = arguments.rows * SIZES.length // keys.get("sequence_length", SIZES.length)
            for state in ("cold", "warm") if keys else ("",):
                with mock.patch.object(processes, "count", return_value=count):
                    found = rate(data_of(**keys), rows // count, held)
                times = found / training
                print(f"{title} {state}: {found:,.0f} tokens/s, {times:,.0f} times", flush=True)
        print(f"target: {TARGET} times")
        said = io.StringIO()
        run = config.model_copy(update={"data": data_of(**remote)})
        with contextlib.redirect_stdout(said):
            train(run)
        [waited] = re.findall(r"^ *data .* ([\d.]+)%$", said.getvalue(), flags=re.MULTILINE)
        print(
            f"a run of {arguments.steps} steps waited for data {waited}% of its time (target < 1)"
        )


if __name__ == "__main__":
    main()
