"""What a family of models is: its names, its options, and the table of its tensors."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.config import ModelConfig

Json = dict[str, Any]

INVERSE_FREQUENCIES = r".*\.rotary_emb\.inv_freq"


@dataclass(frozen=True)
class Family:
    """A `model_type` of config.json.

    to_config: our `model:` section; takes every key that affects the logits.
    from_config: config.json without names and tokens. It may ignore what it cannot express: what
        `to_config` makes of it is compared with the model.
    rules: a row for every tensor.
    defaults: what transformers' configuration class has for keys that a file leaves out. The main
        sizes are not among them: a file without one is damaged, and is refused.
    nullable: the keys of `defaults` for which null has another meaning than the default.
    prefix: what tensor names may lack in files without a head, such as `model.`.
    unused: a pattern for the names of tensors that are not read, most of which hold no parameters.
    aliases: parts of tensor names, each with what some files have instead.
    copies: patterns for names of tensors that are stored again, each with the name of the first.
    fresh: names of tensors that a file may lack all together; ours are zeros then.
    parts: the keys of config.json that describe the parts of a model of several.
    reads: the kind of data, `data.kind`.
    image_processor: of preprocessor_config.json, where it reads pictures.
    objective: `train.objective`, where it is not the next token's.
    as_stored: config.json and the names of the tensors → config.json with what these alone tell.
    """

    model_type: str
    architecture: str
    to_config: Callable[[HubConfig], Json]
    from_config: Callable[[ModelConfig], Json]
    rules: Callable[[ModelConfig], list[Rule]]
    defaults: Json
    nullable: Collection[str] = ()
    prefix: str = "model."
    unused: str = INVERSE_FREQUENCIES
    aliases: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    fresh: Collection[str] = ()
    parts: Collection[str] = ()
    reads: str = "text"
    image_processor: str = "ViTImageProcessor"
    objective: Json | None = None
    as_stored: Callable[[Json, Collection[str]], Json] = lambda config, tensors: config

    def read(self, config: Json, name: str = "config.json") -> Json:
        """Our `model:` section for a config.json, of which no key is ignored.

        Raises:
            UserError: a key is missing, unknown, or has a value that is not supported.
        """
        hub = HubConfig(config, name, self.defaults, self.nullable)
        section = self.to_config(hub)
        hub.finish()
        return section
