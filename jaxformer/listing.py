"""What `jaxformer list` prints: mixers, optimizers, and the configurations of the checkout."""

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from jaxformer.schema import UserError
from jaxformer.schema_tree import kind_of, section_classes
from jaxformer.validation import show

CONFIGS = Path(__file__).parents[1] / "configs"


def list_mixers() -> str:
    """Every registered mixer: what it computes, and its options with their defaults."""
    from jaxformer.model.mixers import MIXERS

    return "\n".join(
        _entry(kind_of(config), [sys.modules[module.__module__], module], config)
        for config, module in MIXERS.items()
    )


def list_optimizers() -> str:
    """Every optimizer with its options and their defaults."""
    from jaxformer.config import OptimizerUnion

    return "\n".join(
        _entry(kind_of(config), [config], config) for config in section_classes(OptimizerUnion)
    )


def list_configs(folder: Path = CONFIGS) -> str:
    """Every configuration under `folder`, with the first sentence of its header.

    Raises:
        UserError: there is no such folder (an installation without the repository has none).
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: the configurations are in the repository")
    files = sorted(folder.rglob("*.yaml"))
    rows = [(str(_from_here(file)), _header(file)) for file in files]
    return _columns(rows)


def _entry(kind: str | None, documented: Iterable[object], config: type[BaseModel]) -> str:
    options = ", ".join(
        f"{key}={'(required)' if field.is_required() else show(field.default)}"
        for key, field in config.model_fields.items()
        if key != "kind" and not isinstance(field.default, BaseModel)
    )
    summaries = [_summary(thing) for thing in documented]
    return "\n    ".join([str(kind), *summaries, f"options: {options}"])


def _summary(documented: object) -> str:
    """The first paragraph of a doc-string, on one line."""
    paragraph = (inspect.getdoc(documented) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def _header(file: Path) -> str:
    """The first line of a configuration's comment that is not for the editor."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# yaml-language-server"):
            return line.removeprefix("#").strip()
    return ""


def _from_here(file: Path) -> Path:
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max((len(first) for first, _ in rows), default=0)
    return "\n".join(f"{first:<{width}}  {second}".rstrip() for first, second in rows)
