"""jaxformer: train, evaluate and compare language models in JAX.

>>> import jaxformer as jf
>>> config = jf.load_config("configs/quickstart.yaml", ["model.d_model=128"])
>>> model = jf.build_model(config.model, vocab_size=257)
>>> run = jf.load("runs/quickstart")
>>> text = run.generate("def ", max_new_tokens=64)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxformer.xla_flags import set_xla_flags

if TYPE_CHECKING:
    from jaxformer.config.loading import load_config
    from jaxformer.errors import UserError
    from jaxformer.model.language_model import build_model
    from jaxformer.run import load

__version__ = "0.1.0"

_HOMES = {
    "UserError": "jaxformer.errors",
    "build_model": "jaxformer.model.language_model",
    "load": "jaxformer.run",
    "load_config": "jaxformer.config.loading",
}

__all__ = ["UserError", "__version__", "build_model", "load", "load_config"]

set_xla_flags()


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import jaxformer` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxformer' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
