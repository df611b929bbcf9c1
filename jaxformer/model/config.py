"""What a model is made of: the `model:` section of a configuration."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jaxformer.batch import Pair, Source
from jaxformer.model.channel_mixers import ChannelMixerConfig
from jaxformer.model.contrastive import ContrastiveConfig
from jaxformer.model.further import FurtherConfig
from jaxformer.model.inputs import SharedTokensConfig
from jaxformer.model.layer import Layer
from jaxformer.model.outputs import LinearConfig, OutputsConfig
from jaxformer.model.trunk_config import HASHES, EncoderConfig, TrunkConfig


class ModelConfig(TrunkConfig):
    """A model of text or, with other inputs and outputs, of pictures or sound.

    `pattern` repeats over the depth, above the layers of `first`. If its length does not divide the
    layers that remain, the last repetition stops early. A pattern of `num_layers` entries is an
    explicit list of layers. With an `encoder` it is a decoder, in which layers whose mixer is
    `cross_attention` read what the encoder makes of the source.
    """

    vocab_size: PositiveInt | None = Field(
        None, description="ids in the embedding and the head; the tokenizer's if null"
    )
    tie_embeddings: bool = Field(True, description="uses the embedding as the output head")
    logit_scale: PositiveFloat = Field(
        1.0, description="multiplies the logits, before they are capped (Granite)"
    )
    logit_softcap: PositiveFloat | None = Field(
        None, description="c in c · tanh(logits / c); null for none"
    )
    outputs: OutputsConfig = Field(
        LinearConfig(), description="what turns the last activations into logits"
    )
    encoder: EncoderConfig | None = Field(
        None, description="what reads the source of a decoder; null for a model without one"
    )
    further: FurtherConfig | None = Field(
        None, description="what predicts the tokens after the next one; null for nothing"
    )

    @model_validator(mode="after")
    def _ends_fit(self) -> "ModelConfig":
        if self.tie_embeddings and not (self.inputs.has_table and self.outputs.can_be_tied):
            part = "outputs" if self.inputs.has_table else "inputs"
            raise ValueError(
                f"tie_embeddings is true, but {part} {getattr(self, part).kind} have no table of "
                f"embeddings to share; give tie_embeddings: false"
            )
        if self.outputs.of_numbers and self.inputs.numbers is None:
            raise ValueError(
                f"outputs are {self.outputs.kind}, but at a place of inputs {self.inputs.kind} "
                f"stand no numbers to predict; allowed inputs: patches, frames"
            )
        if isinstance(self.outputs, ContrastiveConfig):
            for key, unset in (("logit_softcap", None), ("logit_scale", 1.0)):
                if (value := getattr(self, key)) != unset:
                    raise ValueError(
                        f"{key} is {value:g}, but outputs are contrastive, whose logits have a "
                        f"scale and a bias of their own; leave it out"
                    )
        if self.depth.weighs_losses and not self.inputs.shows_tokens:
            raise ValueError(
                f"depth {self.depth.kind} has exits for tokens, but with inputs "
                f"{self.inputs.kind} the layers do not see every token; give another depth, or "
                f"inputs of kind tokens"
            )
        if self.further is not None:
            layer = self.further_layer()
            if layer.mixer is not None:
                layer.mixer.check(self.d_model, layer.positions)
            if layer.ffn is not None and layer.ffn.reads_tokens:
                raise ValueError(HASHES)
            self.residual.check(self.d_model, self.norm, [layer], self.depth.kind)
            if layer.uses_positions and layer.positions.kind == "relative":
                raise ValueError(
                    "further has the model's positions, relative, whose table is of the model's "
                    "layers alone; give further.layer.positions. Allowed: rope, alibi, none"
                )
        if not self.norm.has_final_norm and getattr(self.further, "own_norms", False):
            raise ValueError(
                f"further.own_norms is given with norm.placement {self.norm.placement}, where "
                f"there is no final norm that modules could read; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _source_is_read(self) -> "ModelConfig":
        named = self._named_layers()
        readers = [name for name, layer in named if layer.mixer and layer.mixer.reads_source]
        if self.encoder is None and readers:
            raise ValueError(
                f"the mixer of {readers[0]} reads a source, but encoder is null; give "
                f"encoder={{length: ..., d_model: ..., num_layers: ..., ...}}"
            )
        self.outputs.check(self.d_model, None if self.encoder is None else self.encoder.d_model)
        if self.encoder is None:
            return self
        if not readers and not self.outputs.reads_source:
            raise ValueError(
                "encoder is given, but no layer reads it; give layers with "
                "mixer={kind: cross_attention}, as in pattern=[{ffn: none}, "
                "{mixer: {kind: cross_attention}}], or outputs={kind: contrastive}"
            )
        for part in (self, self.encoder):
            if readers and part.norm.placement in ("deepnorm", "sub"):
                raise ValueError(
                    f"norm.placement is {part.norm.placement}, which is here for models without "
                    f"an encoder: with one, its constants depend on both depths. Give another one, "
                    f"such as pre"
                )
        if readers and self.outputs.reads_source:
            raise ValueError(
                f"outputs are {self.outputs.kind}, which compare tokens with the source, but the "
                f"mixer of {readers[0]} shows tokens the source; give layers without one"
            )
        if self.inputs.reads != "text" or not self.inputs.shows_tokens:
            raise ValueError(
                f"encoder is given with inputs {self.inputs.kind}, but a decoder writes tokens; "
                f"give inputs of kind tokens"
            )
        shares = isinstance(self.encoder.inputs, SharedTokensConfig)
        if shares and self.encoder.d_model != self.d_model:
            raise ValueError(
                f"encoder.inputs are shared_tokens, but encoder.d_model is "
                f"{self.encoder.d_model} and d_model {self.d_model}; make them the same"
            )
        return self

    @property
    def reads(self) -> str:
        """The kind of data that it is for: `data.kind`."""
        if self.encoder is None:
            return self.inputs.reads
        return "pairs" if self.encoder.inputs.reads == "text" else self.encoder.inputs.reads

    @property
    def numbers(self) -> int | None:
        """How many numbers the outputs predict of a place; None if they give logits."""
        return self.inputs.numbers if self.outputs.of_numbers else None

    @property
    def example(self) -> Any:
        """What it may be initialized with: a batch's `inputs` of one row."""
        if self.encoder is None:
            return self.inputs.example
        return Pair(self.inputs.example, Source(self.encoder.inputs.example))

    def _named_layers(self) -> Iterator[tuple[str, Layer]]:
        yield from super()._named_layers()
        if self.further is not None:
            yield "further", self.further_layer()

    def ffns(self) -> tuple[ChannelMixerConfig, ...]:
        further, encoder = self.further_layer().ffn, self.encoder
        of_encoder = () if encoder is None else encoder.ffns()
        return (*super().ffns(), *([] if further is None else [further]), *of_encoder)

    def further_layer(self) -> Layer:
        """The layer of each further prediction: the model's last one, unless it names another."""
        if self.further is None or self.further.layer is None:
            return self.layers()[-1]
        return self._filled_in(self.further.layer)
