"""The mixers under contract, each with its definition, found in `definitions`, a file a kind: in
causal models, and in encoders."""

import importlib
import pkgutil

from contracts import definitions
from contracts.definition import Case

D_MODEL = 12

CASES: dict[str, Case] = {}
ENCODERS: dict[str, Case] = {}
for found in pkgutil.iter_modules(definitions.__path__):
    module = importlib.import_module(f"contracts.definitions.{found.name}")
    CASES |= getattr(module, "CASES", {})
    ENCODERS |= getattr(module, "ENCODERS", {})
