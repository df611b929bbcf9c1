"""What a model is made of: the `model:` section of a configuration."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jaxformer.model.channel_mixers import ChannelMixerConfig
from jaxformer.model.depth import DepthConfig, FixedConfig
from jaxformer.model.dims import InitConfig
from jaxformer.model.further import FurtherConfig
from jaxformer.model.inputs import InputsConfig, TokensConfig
from jaxformer.model.layer import Layer, LayerConfig
from jaxformer.model.mixers import MixerConfig
from jaxformer.model.norms import NormConfig
from jaxformer.model.outputs import LinearConfig, OutputsConfig
from jaxformer.model.positions import ALiBiConfig, PositionsUnion, RoPEConfig
from jaxformer.model.residuals import PlainConfig, ResidualConfig
from jaxformer.schema.base import Schema

ADDED_TO_EMBEDDINGS = ("learned", "sinusoidal")


class ModelConfig(Schema):
    """A decoder language model.

    `pattern` repeats over the depth, above the layers of `first`. If its length does not divide the
    layers that remain, the last repetition stops early. A pattern of `num_layers` entries is an
    explicit list of layers.
    """

    d_model: Annotated[int, Field(ge=1, le=1 << 24)] = Field(
        description="the width of the residual stream"
    )
    num_layers: Annotated[int, Field(ge=1, le=10_000)] = Field(description="the number of layers")
    vocab_size: PositiveInt | None = Field(
        None, description="ids in the embedding and the head; the tokenizer's if null"
    )
    mixer: MixerConfig = Field(
        description="the token mixer of every layer, unless the pattern says otherwise"
    )
    ffn: ChannelMixerConfig | None = Field(
        description="the feed-forward network of every layer; null for none, as in Mamba"
    )
    pattern: tuple[LayerConfig, ...] = Field(
        (LayerConfig(),),
        min_length=1,
        strict=False,
        description="layers that repeat over the depth",
    )
    first: tuple[LayerConfig, ...] = Field(
        (), strict=False, description="the lowest layers, below those of the pattern"
    )
    norm: NormConfig = Field(NormConfig(), description="the norms of all layers")
    positions: PositionsUnion = Field(RoPEConfig(), description="how tokens know their positions")
    init: InitConfig = Field(InitConfig(), description="how weight matrices start")
    tie_embeddings: bool = Field(True, description="uses the embedding as the output head")
    scale_embeddings: bool | PositiveFloat = Field(
        False,
        description="true multiplies embeddings by √d_model (Gemma); a number, by that number",
    )
    logit_scale: PositiveFloat = Field(
        1.0, description="multiplies the logits, before they are capped (Granite)"
    )
    logit_softcap: PositiveFloat | None = Field(
        None, description="c in c · tanh(logits / c); null for none"
    )
    inputs: InputsConfig = Field(
        TokensConfig(), description="what turns a batch into the first activations"
    )
    outputs: OutputsConfig = Field(
        LinearConfig(), description="what turns the last activations into logits"
    )
    residual: ResidualConfig = Field(
        PlainConfig(), description="how the outputs of sub-layers are added"
    )
    depth: DepthConfig = Field(
        FixedConfig(), description="which layers a token passes, and how often"
    )
    further: FurtherConfig | None = Field(
        None, description="what predicts the tokens after the next one; null for nothing"
    )

    @model_validator(mode="after")
    def _layers_fit(self) -> "ModelConfig":
        if len(self.first) + len(self.pattern) > self.num_layers:
            first = f"first has {len(self.first)} entries and " if self.first else ""
            raise ValueError(
                f"{first}pattern has {len(self.pattern)} entries for num_layers "
                f"{self.num_layers}; shorten the pattern or deepen the model"
            )
        if self.first and not self.depth.has_first:
            raise ValueError(
                f"first is given with depth {self.depth.kind}, which is of layers that repeat "
                f"alone; leave it out, or use depth fixed"
            )
        for layer in (*self.distinct_layers(), self.further_layer()):
            if layer.mixer is not None:
                layer.mixer.check(self.d_model, layer.positions)
        self.inputs.check(self.d_model)
        if self.depth.weighs_losses and not self.inputs.shows_tokens:
            raise ValueError(
                f"depth {self.depth.kind} has exits for tokens, but with inputs "
                f"{self.inputs.kind} the layers do not see every token; give another depth, or "
                f"inputs of kind tokens"
            )
        self.depth.check(self.num_layers, self.pattern_layers())
        self._check_hashes()
        if self.norm.placement == "post" and getattr(self.further, "own_norms", False):
            raise ValueError(
                "further.own_norms is given with norm.placement post, where there is no final norm "
                "that modules could read; leave it out"
            )
        return self

    def _check_hashes(self) -> None:
        """Refuse channel mixers that read tokens where layers do not see them."""
        hidden = [layer.ffn for layer in self.inputs.own_layers]
        hidden += [] if self.further is None else [self.further_layer().ffn]
        if not self.inputs.shows_tokens:
            hidden += [layer.ffn for layer in self.distinct_layers()]
        if any(ffn is not None and ffn.reads_tokens for ffn in hidden):
            raise ValueError(
                "ffn has routing hash, which goes by the tokens' ids, in layers that do not see "
                "them, as in inputs of kind chunks and in further; allowed: in the layers of a "
                "model whose inputs are of kind tokens"
            )

    @model_validator(mode="after")
    def _positions_are_used(self) -> "ModelConfig":
        layers = self.distinct_layers()
        entries = (*self.first, *self.pattern)
        for number, (entry, layer) in enumerate(zip(entries, layers, strict=True)):
            where = _entry(number, len(self.first))
            kind = layer.positions.kind
            if entry.positions is None or kind == "none":
                continue
            if kind in ADDED_TO_EMBEDDINGS:
                raise ValueError(
                    f"{where} has positions {kind}, which are added to the "
                    f"embeddings, below all layers; give model.positions. Allowed in an entry: "
                    f"rope, alibi, none"
                )
            if not layer.uses_positions:
                raise ValueError(
                    f"{where} has positions {kind}, which its mixer "
                    f"{layer.mixer_kind} does not use; leave them out"
                )
        is_used = any(layer.uses_positions for layer in layers)
        # RoPE is the default, even of models in which no layer uses it.
        if isinstance(self.positions, ALiBiConfig) and not is_used:
            mixers = ", ".join(sorted({layer.mixer_kind for layer in layers}))
            raise ValueError(
                f"positions are alibi, which no layer uses (mixers: {mixers}); give another kind, "
                f"or none"
            )
        return self

    @property
    def longest_row(self) -> float:
        """In tokens; infinite if no positions have a `max_length`."""
        layers = (*self.distinct_layers(), *self.inputs.own_layers)
        every = (self.positions, *(layer.positions for layer in layers))
        return min(getattr(each, "max_length", None) or math.inf for each in every)

    def first_layers(self) -> tuple[Layer, ...]:
        """The entries of `first` with the defaults filled in."""
        return tuple(self._filled_in(entry) for entry in self.first)

    def distinct_layers(self) -> tuple[Layer, ...]:
        """The layers of `first` and of one repetition of the pattern."""
        return (*self.first_layers(), *self.pattern_layers())

    def pattern_layers(self) -> tuple[Layer, ...]:
        """The pattern's entries with the defaults filled in."""
        return tuple(self._filled_in(entry) for entry in self.pattern)

    def _filled_in(self, entry: LayerConfig) -> Layer:
        return entry.filled_in(self.mixer, self.ffn, self.positions)

    def layers(self) -> tuple[Layer, ...]:
        """Every layer from the bottom up."""
        pattern, repeated = self.pattern_layers(), self.num_layers - len(self.first)
        return (
            *self.first_layers(),
            *(pattern[index % len(pattern)] for index in range(repeated)),
        )

    def ffns(self) -> tuple[ChannelMixerConfig, ...]:
        """The channel mixers that layers may have."""
        layers = (*self.distinct_layers(), self.further_layer(), *self.inputs.own_layers)
        return tuple(layer.ffn for layer in layers if layer.ffn is not None)

    def further_layer(self) -> Layer:
        """The layer of each further prediction: the model's last one, unless it names another."""
        if self.further is None or self.further.layer is None:
            return self.layers()[-1]
        return self._filled_in(self.further.layer)

    def layers_of_path(self, path: str) -> Sequence[int] | None:
        """See `DepthConfig.layers_of_path`."""
        match path.split("/"):
            case ["stack", "first", layer, *_]:
                return [int(layer.removeprefix("layer_"))]
        below = len(self.first)
        found = self.depth.layers_of_path(path, self.num_layers - below, len(self.pattern))
        return None if found is None else [below + layer for layer in found]


def _entry(number: int, first: int) -> str:
    return f"first entry {number}" if number < first else f"pattern entry {number - first}"
