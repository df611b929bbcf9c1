"""A source of weights from what the user names: a folder, a GGUF file, or a model on the Hub."""

import re
from pathlib import Path

from jaxformer.checkpoint.interop.folder import INDEX, HuggingFaceFolder
from jaxformer.checkpoint.interop.gguf import GGUFFile
from jaxformer.checkpoint.interop.source import Source
from jaxformer.errors import UserError
from jaxformer.paths import local_path
from jaxformer.terminal import say

HUB_NAME = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
WANTED = ("*.json", "*.jinja", "model*.safetensors", INDEX)


def open_source(name: str) -> Source:
    """Open what the user names: headers and options are read and checked, weights are not yet.

    Raises:
        UserError: nothing of that name, or a damaged or unsafe file.
    """
    path = local_path(name)
    if path.is_dir():
        file = _gguf_in(path)
        return HuggingFaceFolder(path) if file is None else GGUFFile(file)
    if path.suffix == ".gguf":
        return GGUFFile(path)
    if path.exists():
        raise UserError(
            f"{path} is a file; give the folder with config.json and *.safetensors, or a .gguf file"
        )
    if re.fullmatch(HUB_NAME, name) is None:
        raise UserError(f"{name} does not exist; give a folder, or a name on the Hub: ORG/NAME")
    return _from_hub(name)


def _gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder that is not in Hugging Face's layout."""
    files = sorted(folder.glob("*.gguf"))
    if not files or (folder / "config.json").exists():
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder} holds several GGUF files, {names}; name one of them")
    return files[0]


def _from_hub(name: str) -> HuggingFaceFolder:
    from huggingface_hub import snapshot_download

    say(f"fetching {name} from the Hugging Face Hub")
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: no such folder here, and the Hub gave no such model "
            f"({str(error).splitlines()[0]}). Check the name and the connection."
        ) from None
    return HuggingFaceFolder(folder, root=folder.parents[1])  # its files are links into the cache
