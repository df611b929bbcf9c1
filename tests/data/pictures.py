"""Files of small pictures for tests, in the layouts that users have."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ANIMALS = ("cat", "dog", "eel")
# A model of pictures of 8 × 8, in four patches.
MODEL = {
    "d_model": 8,
    "num_layers": 1,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "gelu", "d_hidden": 8},
    "positions": {"kind": "learned", "max_length": 4},
    "order": "full",
    "inputs": {"kind": "patches", "size": [8, 8], "patch": 4},
    "outputs": {"kind": "classes"},
    "tie_embeddings": False,
}


def pixels(number: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """A picture of noise that no other number has, uint8 [height, width, channels]."""
    random = np.random.default_rng([number, height, width, channels])
    return random.integers(0, 256, (height, width, channels), np.uint8)


def encoded(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def write_parquet(
    file: Path,
    contents: Sequence[bytes | None],
    labels: Sequence[Any],
    names: Sequence[str] | None = ANIMALS,
    columns: tuple[str, str] = ("image", "label"),
) -> str:
    """A table as `datasets` writes it; `names` make its labels a ClassLabel. Gives the source."""
    image = pa.array(
        [None if each is None else {"bytes": each, "path": None} for each in contents],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({columns[0]: image, columns[1]: pa.array(labels)})
    if names is not None:
        features = {
            columns[0]: {"_type": "Image"},
            columns[1]: {"_type": "ClassLabel", "names": list(names)},
        }
        told = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": told})
    pq.write_table(table, file)
    return f"parquet:{file}"


def write_numbered(folder: Path, count: int, name: str = "train", channels: int = 3) -> str:
    """A table of `pixels(0)`, `pixels(1)`, ... with the classes 0, 1, 2, 0, ..."""
    contents = [encoded(pixels(number, channels=channels)) for number in range(count)]
    labels = [number % len(ANIMALS) for number in range(count)]
    return write_parquet(folder / f"{name}.parquet", contents, labels)


def write_folder(folder: Path, classes: dict[str, int]) -> str:
    """A folder of so many pictures for every class. Gives the source."""
    number = 0
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for _ in range(count):
            (folder / name / f"{number:03}.png").write_bytes(encoded(pixels(number)))
            number += 1
    return f"imagefolder:{folder}"


def write_tar(file: Path, samples: Sequence[dict[str, bytes]]) -> str:
    """A webdataset; each sample has the bytes of its files by their endings. Gives the source."""
    with tarfile.open(file, "w") as archive:
        for number, sample in enumerate(samples):
            for end, content in sample.items():
                member = tarfile.TarInfo(f"{number:03}.{end}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return f"webdataset:{file}"
