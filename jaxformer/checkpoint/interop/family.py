"""What a family of models is: its names, its options, and the table of its tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.config import ModelConfig

Json = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A `model_type` of config.json.

    to_config: our `model:` section; takes every key that decides a logit.
    from_config: config.json without names and tokens. It need not see what it cannot express: what
        `to_config` makes of it is compared with the model.
    rules: a row for every tensor.
    prefix: what names of files without a head may lack, such as `model.`.
    unused: a pattern of tensors that hold nothing learned.
    """

    model_type: str
    architecture: str
    to_config: Callable[[HubConfig], Json]
    from_config: Callable[[ModelConfig], Json]
    rules: Callable[[ModelConfig], list[Rule]]
    prefix: str = "model."
    unused: str = r".*\.rotary_emb\.inv_freq"
