"""A folder in Hugging Face's layout: config.json, safetensors files, and a tokenizer."""

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxformer.checkpoint.interop.safetensors import Place, read_header
from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.schema import UserError

AHEAD = 1 << 26  # bytes
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class HuggingFaceFolder:
    """A `Source`. Files may be links to places under `root`, which is the folder itself if not
    given, and nowhere else.

    Raises:
        UserError: files that are missing, lie elsewhere or are not what they say; pickle files.
    """

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.name = str(folder)
        self._folder = folder
        self._root = (root or folder).resolve()
        self.config: dict[str, Any] = _read_json(self._file("config.json"))
        self._places = self._find()
        self.tensors: Mapping[str, TensorInfo] = {
            name: place.info for name, place in self._places.items()
        }
        self._after = dict(zip(self._places, itertools.count(1), strict=False))

    def read(self, name: str) -> np.ndarray:
        """The tensor; what follows it comes into the system's cache meanwhile."""
        ahead = 0
        for place in itertools.islice(self._places.values(), self._after[name], None):
            if ahead > AHEAD:
                break
            place.fetch()
            ahead += place.bytes
        return self._places[name].read()

    def write_tokenizer(self, folder: Path) -> bool:
        if not (self._folder / TOKENIZER).exists():
            return False
        shutil.copyfile(self._file(TOKENIZER), folder / TOKENIZER)
        settings: dict[str, Any] = {}
        if (self._folder / TOKENIZER_CONFIG).exists():
            settings = _read_json(self._file(TOKENIZER_CONFIG))
        if (self._folder / TEMPLATE).exists():
            settings["chat_template"] = self._file(TEMPLATE).read_text("utf-8")
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2), "utf-8")
        return True

    def _find(self) -> dict[str, Place]:
        if (self._folder / INDEX).exists():
            return self._indexed()
        files = sorted(self._folder.glob("*.safetensors"))
        if not files:
            pickles = [file.name for kind in PICKLES for file in self._folder.glob(kind)]
            if pickles:
                raise UserError(
                    f"{self._folder} has its weights in {pickles[0]}, a pickle: reading one runs "
                    f"whatever program is in it, so none is ever read; get the model's "
                    f"*.safetensors, or save them with save_pretrained(FOLDER) in transformers"
                )
            raise UserError(f"{self._folder} has no *.safetensors file, and no {INDEX}")
        places: dict[str, Place] = {}
        for file in files:
            for name, place in read_header(self._file(file.name)).items():
                if name in places:
                    raise UserError(f"'{name}' is in {places[name].file} and in {file}; keep one")
                places[name] = place
        return places

    def _indexed(self) -> dict[str, Place]:
        index = _read_json(self._file(INDEX)).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(at, str) for at in index.values()):
            raise UserError(f"{self._folder / INDEX} has no weight_map of names to files")
        places: dict[str, Place] = {}
        for shard in sorted(set(index.values())):
            held = read_header(self._file(shard))
            wanted = [name for name, at in index.items() if at == shard]
            for name in [*wanted, *held]:
                if name not in held or name not in wanted:
                    lacks = "is not in the file" if name not in held else "is not in the index"
                    raise UserError(f"{self._folder / INDEX}: '{name}' of {shard} {lacks}")
            places |= held
        return places

    def _file(self, name: str) -> Path:
        """A file of the folder, which may not lead out of it.

        Raises:
            UserError: it does, or is not there.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UserError(
                f"{self._folder} names the file '{name}'; allowed: files inside of the folder"
            )
        file = self._folder / path
        if not file.resolve().is_relative_to(self._root):
            raise UserError(
                f"{file} is a link to {file.resolve()}, outside of {self._root}; put the file "
                f"itself there, or give the name that the model has on the Hub"
            )
        if not file.is_file():
            raise UserError(f"{file} is missing; fetch the whole model")
        return file


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content
