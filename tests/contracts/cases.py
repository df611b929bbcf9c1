"""The mixers under contract, each with its definition, found in `definitions`, a file a kind."""

import importlib
import pkgutil

from contracts import definitions
from contracts.definition import Case

D_MODEL = 12

CASES: dict[str, Case] = {}
for module in pkgutil.iter_modules(definitions.__path__):
    CASES |= importlib.import_module(f"contracts.definitions.{module.name}").CASES
