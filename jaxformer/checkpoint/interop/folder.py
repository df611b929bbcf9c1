"""A folder in Hugging Face's layout: config.json, safetensors files, and a tokenizer."""

import itertools
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxformer.checkpoint.interop.ctc_tokenizer import from_vocabulary
from jaxformer.checkpoint.interop.safetensors import Place, read_header
from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.data.text_ends import read_settings
from jaxformer.errors import UserError
from jaxformer.reading import read_json_object

AHEAD = 1 << 26  # bytes to prefetch
INDEX = "model.safetensors.index.json"
PREPROCESSOR = "preprocessor_config.json"
VOCABULARY = "vocab.json"
ADAPTER = "adapter_config.json"
ADAPTED = r"(^|\.)(lora_\w+|base_model|base_layer|modules_to_save)\."
SHARD = r"(.*-)(\d+)-of-(\d+)(\.safetensors)"
MOST_SHARDS = 10_000
PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class HuggingFaceFolder:
    """A `Source`. Files may be links, but only to places under `root`, by default the folder.

    Raises:
        UserError: files that are missing, lie elsewhere or are not what they say; pickle files.
    """

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.name = str(folder)
        self._folder = folder
        self._root = (root or folder).resolve()
        self._refuse_adapter()
        self.config: dict[str, Any] = self._json("config.json")
        has_preprocessor = (folder / PREPROCESSOR).exists()
        self.preprocessor: dict[str, Any] = self._json(PREPROCESSOR) if has_preprocessor else {}
        self._places = self._find()
        self.tensors: Mapping[str, TensorInfo] = {
            name: place.info for name, place in self._places.items()
        }
        if adapter := next((name for name in self.tensors if re.search(ADAPTED, name)), None):
            raise UserError(
                f"{self._folder} has {adapter}, a part of an adapter of PEFT, among its weights; "
                f"merge it with merge_and_unload() in peft, then save_pretrained(FOLDER)"
            )
        self._after = dict(zip(self._places, itertools.count(1), strict=False))

    def read(self, name: str) -> np.ndarray:
        """The tensor; the system prefetches the ones after it meanwhile."""
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
        settings = read_settings(self.name, self._found)
        if (self._folder / TEMPLATE).exists():
            settings["chat_template"] = self._file(TEMPLATE).read_text("utf-8")
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2), "utf-8")
        return True

    def write_vocabulary(self, folder: Path) -> bool:
        if not (self._folder / VOCABULARY).exists():
            return False
        settings = read_settings(self.name, self._found)
        files = from_vocabulary(self._json(VOCABULARY), settings, self.name)
        for file, content in zip((TOKENIZER, TOKENIZER_CONFIG), files, strict=True):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (folder / file).write_text(text, "utf-8")
        return True

    def _found(self, name: str) -> Path | None:
        return self._file(name) if (self._folder / name).exists() else None

    def _find(self) -> dict[str, Place]:
        if (self._folder / INDEX).exists():
            return self._indexed()
        files = sorted(self._folder.glob("*.safetensors"))
        if not files:
            pickles = [file.name for kind in PICKLES for file in sorted(self._folder.glob(kind))]
            if pickles:
                raise UserError(
                    f"{self._folder} has its weights in {pickles[0]}, a pickle: reading one runs "
                    f"whatever program is in it, so none is ever read; get the model's "
                    f"*.safetensors, or save them with save_pretrained(FOLDER) in transformers"
                )
            held = ", ".join(sorted(file.name for file in self._folder.iterdir())[:10])
            raise UserError(
                f"{self._folder} has no *.safetensors file, and no {INDEX}; it holds only {held}. "
                f"In transformers, save_pretrained(FOLDER) writes them"
            )
        self._refuse_missing_shards({file.name for file in files})
        places: dict[str, Place] = {}
        for file in files:
            for name, place in read_header(self._file(file.name)).items():
                if name in places:
                    raise UserError(f"'{name}' is in {places[name].file} and in {file}; keep one")
                places[name] = place
        return places

    def _refuse_adapter(self) -> None:
        """Refuse an adapter, with which transformers loads another model than the folder's own."""
        if not (self._folder / ADAPTER).exists():
            return
        base = self._json(ADAPTER).get("base_model_name_or_path")
        raise UserError(
            f"{self._folder} holds an adapter of PEFT ({ADAPTER}), trained on "
            f"{base if isinstance(base, str) else 'a model that it does not name'}: it is a change "
            f"to that model, not a model. Merge them, and import the result: in Python, "
            f"peft.AutoPeftModelForCausalLM.from_pretrained({str(self._folder)!r})"
            f".merge_and_unload().save_pretrained('merged'), with the tokenizer beside it; or "
            f"import the model that it was trained on"
        )

    def _refuse_missing_shards(self, files: set[str]) -> None:
        """Check the set of files whose names say how many there are, if no index lists them."""
        for name in files:
            if match := re.fullmatch(SHARD, name):
                stem, number, count, end = match.groups()
                wanted = {
                    f"{stem}{index:0{len(number)}}-of-{count}{end}"
                    for index in range(1, min(int(count), MOST_SHARDS) + 1)
                }
                if missing := sorted(wanted - files):
                    raise UserError(_missing(self._folder, missing))

    def _indexed(self) -> dict[str, Place]:
        index = self._json(INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(at, str) for at in index.values()):
            raise UserError(f"{self._folder / INDEX} has no weight_map of names to files")
        places: dict[str, Place] = {}
        shards = sorted(set(index.values()))
        if missing := [shard for shard in shards if not self._inside(shard).is_file()]:
            raise UserError(_missing(self._folder, missing))
        for shard in shards:
            held = read_header(self._file(shard))
            wanted = [name for name, at in index.items() if at == shard]
            for name in [*wanted, *held]:
                if name not in held:
                    lacks = "is not in the file"
                elif name not in wanted:
                    at = index.get(name)
                    lacks = f"is in {at} by the index" if at else "is not in the index"
                else:
                    continue
                raise UserError(f"{self._folder / INDEX}: '{name}' of {shard} {lacks}")
            places |= held
        return places

    def _json(self, name: str) -> dict[str, Any]:
        file = self._file(name)
        return read_json_object(file.read_bytes(), str(file))

    def _file(self, name: str) -> Path:
        """A file of the folder.

        Raises:
            UserError: it is not there, or leads out of the folder.
        """
        file = self._inside(name)
        if not file.is_file():
            raise UserError(_missing(self._folder, [name]))
        return file

    def _inside(self, name: str) -> Path:
        """The path of a file of that name, which must lie in the folder."""
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
        return file


def _missing(folder: Path, files: list[str]) -> str:
    shown = ", ".join(str(folder / file) for file in files[:5])
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return f"{shown}{more} {'is' if len(files) == 1 else 'are'} missing; fetch the whole model"
