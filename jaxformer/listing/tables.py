"""What lists and pages of choices are made of: tables, doc-strings on one line, and the model whose
costs they compare."""

import inspect
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxformer.schema.explanations import show
from jaxformer.schema.tree import all_kinds, kinds_of, one_of, section_classes

if TYPE_CHECKING:
    from jaxformer.model.language_model import LanguageModel

# Costs are those of a wide layer, in sequences of so many tokens.
D_MODEL, SHORT = 1024, 4096
# So many layers has the model whose costs pages compare.
REFERENCE_LAYERS = 8


def reference_model(**parts: dict[str, Any]) -> "LanguageModel":
    """The model whose costs the page of depths compares."""
    from jaxformer.model.config import ModelConfig
    from jaxformer.model.language_model import build_model

    config = {
        "d_model": D_MODEL,
        "num_layers": REFERENCE_LAYERS,
        "vocab_size": 32_000,
        "mixer": {"kind": "attention"},
        "ffn": {"kind": "swiglu", "d_hidden": 8 * D_MODEL // 3},
    }
    return build_model(ModelConfig.model_validate(config | parts), dtype="bfloat16")


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """In Markdown, whose columns end at a bar."""
    head, *others = rows
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in others)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *escaped)]


def columns(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def entry(documented: Iterable[object], config: type[BaseModel]) -> str:
    options = ", ".join(
        f"{key}={_default(field)}" for key, field in config.model_fields.items() if key != "kind"
    )
    summaries = dict.fromkeys(summary(thing) for thing in documented)
    return "\n    ".join([one_of(kinds_of(config)), *summaries, f"options: {options or 'none'}"])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    if isinstance(field.default, BaseModel):  # a section, with options of its own
        default = getattr(field.default, "kind", "")
        kinds = all_kinds(section_classes(field.annotation))
        return " | ".join(dict.fromkeys([default, *kinds]))
    return show(field.default)


def summary(documented: object) -> str:
    """The first paragraph of a doc-string, on one line."""
    paragraph = (inspect.getdoc(documented) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def first_sentence(documented: object) -> str:
    return re.split(r"(?<=\.)\s", summary(documented))[0]


def paper(module: object) -> str:
    """The first paper that a module's doc-string names."""
    found = re.search(r"arXiv:\d{4}\.\d{5}", inspect.getdoc(module) or "")
    return found.group() if found else ""
