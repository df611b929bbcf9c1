"""The JSON schema of a configuration file, for editors."""

import json
from pathlib import Path

from jaxformer.config import Config
from jaxformer.loading import read_text


def json_schema() -> str:
    """The schema of `Config` as text (JSON Schema, draft 2020-12)."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def is_current(path: Path) -> bool:
    """Whether the file at `path` holds the schema of this version."""
    return read_text(path) == json_schema()
