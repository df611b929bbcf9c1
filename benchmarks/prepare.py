"""How fast `jaxformer data prepare` is beside the tokenizer alone, and how much memory it takes.

    python benchmarks/prepare.py [--megabytes 400] [--turns 3] [--folder FOLDER]
    python benchmarks/prepare.py --megabytes 10000 --turns 1
    python benchmarks/prepare.py --megabytes 1000 --turns 1 --one-document

The text is made of lines of the Python standard library in random order, as documents of a jsonl
file or as one text file, and the tokenizer is a byte-level BPE of 32,768 ids trained on them.
`encode_batch` of the `tokenizers` library, with all cores and texts already in memory, encodes a
sample of it; `data prepare` runs as a process of its own, from start to end. They take turns, so
that a noisy machine disturbs both alike. Memory is the sum of the proportional set sizes of all
processes of the command.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

VOCABULARY = 32768
SAMPLE_BYTES = 64 << 20  # that `encode_batch` alone encodes
LINES_PER_DOCUMENT = (5, 120)
TARGET = 0.9  # of the tokenizer alone
LOOKED_EVERY = 0.2  # seconds
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def documents(size: int) -> Iterator[str]:
    """Documents of about `size` bytes in all."""
    root = Path(sysconfig.get_path("stdlib"))
    lines: list[str] = []
    for file in sorted(root.glob("*.py")):
        lines += file.read_text(errors="ignore").splitlines(keepends=True)
    draw = random.Random(0)
    while size > 0:
        text = "".join(draw.choices(lines, k=draw.randint(*LINES_PER_DOCUMENT)))
        size -= len(text)
        yield text


def write(folder: Path, size: int, one_document: bool) -> str:
    """Write the text; → its source."""
    file = folder / ("text.txt" if one_document else "text.jsonl")
    with file.open("w", encoding="utf-8") as stream:
        for text in documents(size):
            stream.write(text if one_document else json.dumps({"text": text}) + "\n")
    return f"{'text' if one_document else 'jsonl'}:{file}"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "jaxformer", "data", words[0], str(CONFIG), *words[1:]]


def alone(definition: Path, texts: list[str]) -> float:
    """Tokens per second of `encode_batch`."""
    tokenizer = Tokenizer.from_file(str(definition))
    began, tokens = time.perf_counter(), 0
    for start in range(0, len(texts), 4096):
        batch = tokenizer.encode_batch(texts[start : start + 4096], add_special_tokens=False)
        tokens += sum(len(encoding) for encoding in batch)
    return tokens / (time.perf_counter() - began)


def prepared(folder: Path, source: str, definition: Path) -> tuple[float, float, int]:
    """Tokens per second of the command, its seconds, and the most bytes of memory it had."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    words = [f"data.source={source}", f"data.tokenizer={definition}"]
    words += ["data.validation_fraction=0.0", f"data.cache_dir={folder / 'store'}"]
    began, most = time.perf_counter(), 0
    process = subprocess.Popen(command("prepare", *words), stderr=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, memory_of(process.pid))
        time.sleep(LOOKED_EVERY)
    seconds = time.perf_counter() - began
    assert process.returncode == 0
    [index] = (folder / "store").glob("*/index.json")
    return json.loads(index.read_text())["tokens"] / seconds, seconds, most


def memory_of(process: int) -> int:
    """Bytes of the process and those that it has started."""
    total = 0
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total = 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if "Pss:" in line)
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, StopIteration):  # it has ended
        return total
    return total + sum(memory_of(int(child)) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=400, help="of text")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each side")
    parser.add_argument("--one-document", action="store_true", help="one text file, one document")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        sample = folder / "sample"
        sample.mkdir()
        small = write(sample, SAMPLE_BYTES // 4, one_document=False)
        definition = folder / "tokenizer.json"
        words = [f"data.source={small}", "--vocab-size", str(VOCABULARY), "--out", str(definition)]
        subprocess.run(command("train-tokenizer", *words), check=True)
        source = write(folder, arguments.megabytes * 10**6, arguments.one_document)
        texts = list(documents(SAMPLE_BYTES))
        ratios = []
        for turn in range(arguments.turns):
            bare = alone(definition, texts)
            ours, seconds, most = prepared(folder, source, definition)
            ratios.append(ours / bare)
            print(
                f"turn {turn + 1}: encode_batch {bare:,.0f} tokens/s, data prepare {ours:,.0f} "
                f"tokens/s in {seconds:.0f} s: {ours / bare:.2f}; memory {most / 2**20:,.0f} MiB",
                flush=True,
            )
        print(f"median {statistics.median(ratios):.2f} of the tokenizer alone (target {TARGET})")


if __name__ == "__main__":
    main()
