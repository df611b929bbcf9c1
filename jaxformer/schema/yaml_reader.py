"""YAML as configurations need it: safe, every key once, scalars as YAML 1.2 reads them.

PyYAML follows YAML 1.1, where `1e-4` is text, `on` is a boolean and `010` is eight. The core schema
of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema) has none of these surprises.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

from jaxformer.errors import UserError, shorten

_TAG = "tag:yaml.org,2002:"
_SCALARS = {  # in the order in which they are tried
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    # Registries of its own, empty to begin with: nothing of YAML 1.1 is inherited.
    yaml_implicit_resolvers: ClassVar[dict] = {}
    yaml_constructors: ClassVar[dict] = {}

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError) as error:  # such as `!!int "ten"`
            text = f"'{shorten(str(node.value))}' does not fit its tag {node.tag}"
            if "integer string conversion" in str(error):
                text = f"an integer of {len(node.value):,} digits is too long"
            raise ConstructorError(None, None, text, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        first_lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(
                    None, None, f"a key must be text, not {key!r}", key_node.start_mark
                )
            if key in first_lines:
                raise ConstructorError(
                    None,
                    None,
                    f"key '{key}' is given twice, first in line {first_lines[key]}; keep one",
                    key_node.start_mark,
                )
            first_lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)
# Whole containers at once, so that an alias inside its own anchor is an error and not a loop.
_Loader.add_constructor(_TAG + "map", lambda loader, node: loader.construct_mapping(node, True))
_Loader.add_constructor(_TAG + "seq", lambda loader, node: loader.construct_sequence(node, True))
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(loader.construct_scalar(node)))
_Loader.add_constructor(_TAG + "float", _Loader.construct_yaml_float)
_Loader.add_constructor(_TAG + "bool", _Loader.construct_yaml_bool)
_Loader.add_constructor(_TAG + "null", _Loader.construct_yaml_null)
_Loader.add_constructor(_TAG + "str", _Loader.construct_yaml_str)
_Loader.add_constructor(None, _Loader.construct_undefined)


@dataclass(frozen=True)
class Document:
    """What a YAML text says, and where it says it."""

    data: Any
    root: yaml.Node | None

    def line_of(self, path: Sequence[str | int]) -> int | None:
        """The line (from 1) of the key at `path`, or None when the text has no such key."""
        node, line = self.root, None
        for part in path:
            match node:
                case yaml.MappingNode():
                    pairs = {key.value: (key, value) for key, value in node.value}
                    if part not in pairs:
                        return None
                    key_node, node = pairs[part]
                    line = key_node.start_mark.line + 1
                case yaml.SequenceNode() if isinstance(part, int) and part < len(node.value):
                    node = node.value[part]
                    line = node.start_mark.line + 1
                case _:
                    return None
        return line


def read_yaml(text: str, name: str) -> Document:
    """Parse one YAML document; `name` says what the text is, for messages.

    Raises:
        UserError: malformed YAML, a key given twice, or a tag beyond plain data; with the place.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return Document(None if root is None else loader.construct_document(root), root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        context = f" ({error.context})" if error.context else ""
        raise UserError(f"{name}{place}: {error.problem}{context}") from error
    except RecursionError as error:
        raise UserError(f"{name}: its lists and sections are nested too deeply") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1
        raise UserError(
            f"{name}, line {line}, column {column}: YAML does not allow the character "
            f"U+{ord(text[error.position]):04X}"
        ) from error
