"""docs/reliability.md names tests that are there, beside every line."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LINES = (REPOSITORY / "docs" / "reliability.md").read_text().splitlines()
ROWS = [
    line
    for line, before in zip(LINES[1:], LINES, strict=False)
    if line.startswith("| ") and not line.startswith("| ---") and before.startswith("|")
]


def functions_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS)
def test_a_line_names_tests_and_all_of_them_exist(row):
    *_, named = row.strip("| ").split(" | ")
    names = re.findall(r"`([^`]+)`", named)
    assert names
    for name in names:
        path, _, test = name.partition("::")
        assert test in functions_of(REPOSITORY / path), name
