"""Imports point downwards: the layers are in pyproject.toml, import-linter holds them."""

from pathlib import Path

from importlinter import cli


def test_imports_point_downwards(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert cli.lint_imports(no_cache=True, no_logo=True) == cli.EXIT_STATUS_SUCCESS
