"""Files of short recordings for tests, in the layouts that users have."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

RATE = 800
LETTERS = {"a": 60, "b": 130, "c": 260}  # Hz
LETTER = 64  # samples: a tone, and a pause
# A model of recordings in places of 16 samples.
MODEL = {
    "d_model": 16,
    "num_layers": 1,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "gelu", "d_hidden": 32},
    "order": "full",
    "tie_embeddings": False,
    "inputs": {
        "kind": "frames",
        "sample_rate": RATE,
        "window": 32,
        "hop": 8,
        "mels": 8,
        "subsampling": 2,
    },
}


def spoken(text: str, rate: int = RATE) -> np.ndarray:
    """A text of LETTERS as tones, a pause behind each, float32 [samples]."""
    length = LETTER * rate // RATE
    time = np.arange(int(0.75 * length)) / rate
    tones = [0.5 * np.sin(2 * np.pi * LETTERS[letter] * time) for letter in text]
    padded = [np.pad(tone, (0, length - len(tone))) for tone in tones]
    return np.concatenate([np.zeros(0), *padded]).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    """The bytes of a file; samples are [samples] or [samples, channels]."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def write_parquet(
    file: Path,
    contents: Sequence[bytes | None],
    targets: Sequence[Any],
    column: str = "text",
    names: Sequence[str] | None = None,
) -> str:
    """A table as `datasets` writes it; `names` make its labels a ClassLabel. Gives the source."""
    audio = pa.array(
        [None if each is None else {"bytes": each, "path": None} for each in contents],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"audio": audio, column: pa.array(targets)})
    target = {"_type": "Value", "dtype": "string" if names is None else "int64"}
    if names is not None:
        target = {"_type": "ClassLabel", "names": list(names)}
    features = {"audio": {"_type": "Audio"}, column: target}
    told = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), file)
    return f"parquet:{file}"


def texts_of(count: int) -> list[str]:
    """Different texts of one to three letters."""
    random = np.random.default_rng(0)
    return ["".join(random.choice(list(LETTERS), 1 + row % 3)) for row in range(count)]


def write_spoken(folder: Path, count: int, name: str = "train") -> str:
    """A table of recordings of `texts_of(count)`. Gives the source."""
    texts = texts_of(count)
    contents = [encoded(spoken(text)) for text in texts]
    return write_parquet(folder / f"{name}.parquet", contents, texts)
