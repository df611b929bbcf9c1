"""What the package must not contain."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "jaxformer"
# Of a safe loader one only says what it refuses, in prose; these are calls and settings.
RUNS_CODE = re.compile(
    r"\b(import (pickle|dill|marshal|shelve|joblib)|torch\.load\(|allow_pickle ?= ?True|"
    r"trust_remote_code ?= ?True|yaml\.(unsafe_|full_)?load\(|(?<![\w.])(eval|exec)\()"
)


def test_the_package_names_nothing_that_runs_code_from_a_file():
    found = [
        f"{file.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if RUNS_CODE.search(line)
    ]
    assert not found
    assert RUNS_CODE.search("torch.load(path)")
