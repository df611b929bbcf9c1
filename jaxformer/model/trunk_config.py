"""Inputs and layers, which a model and its encoder are made of."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jaxformer.model.channel_mixers import ChannelMixerConfig
from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.depth import DepthConfig, FixedConfig
from jaxformer.model.dims import InitConfig
from jaxformer.model.inputs import InputsConfig, PatchesConfig, TokensConfig
from jaxformer.model.layer import Layer, LayerConfig, count_sublayers
from jaxformer.model.mixers import MixerConfig
from jaxformer.model.norms import NormConfig
from jaxformer.model.placements import PLACEMENTS
from jaxformer.model.positions import (
    OF_THE_MODEL,
    ALiBiConfig,
    AxialRoPEConfig,
    PositionsUnion,
    RelativePositionsConfig,
    RoPEConfig,
    SinusoidalPositionsConfig,
)
from jaxformer.model.relative_positions import bias_heads
from jaxformer.model.residuals import PlainConfig, ResidualConfig
from jaxformer.schema.base import Schema

HASHES = (
    "ffn has routing hash, which goes by the tokens' ids, in layers that do not see "
    "them, as in inputs of kind chunks and in further; allowed: in the layers of a "
    "model whose inputs are of kind tokens"
)


class TrunkConfig(Schema):
    """Inputs and layers.

    `pattern` repeats over the depth, above the layers of `first`. If its length does not divide the
    layers that remain, the last repetition stops early. A pattern of `num_layers` entries is an
    explicit list of layers.
    """

    d_model: Annotated[int, Field(ge=1, le=1 << 24)] = Field(
        description="the width of the residual stream"
    )
    num_layers: Annotated[int, Field(ge=1, le=10_000)] = Field(description="the number of layers")
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
    order: Literal["causal", "full"] = Field(
        "causal",
        description="causal: tokens see those before them; full: all of their document, as in "
        "encoders",
    )
    init: InitConfig = Field(InitConfig(), description="how weight matrices start")
    scale_embeddings: bool | PositiveFloat = Field(
        False,
        description="true multiplies embeddings by √d_model (Gemma); a number, by that number",
    )
    inputs: InputsConfig = Field(
        TokensConfig(), description="what turns a batch into the first activations"
    )
    residual: ResidualConfig = Field(
        PlainConfig(), description="how the outputs of sub-layers are added"
    )
    depth: DepthConfig = Field(
        FixedConfig(), description="which layers a token passes, and how often"
    )

    @model_validator(mode="after")
    def _layers_fit(self) -> "TrunkConfig":
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
        for layer in self.distinct_layers():
            if layer.mixer is not None:
                layer.mixer.check(self.d_model, layer.positions)
        self.inputs.check(self.d_model, self.positions)
        self._check_positions()
        self.depth.check(self.num_layers, self.pattern_layers())
        self._check_order()
        self._check_norms()
        self._check_grid()
        self._check_hashes()
        return self

    def _check_positions(self) -> None:
        """Refuse positions that do not fit the inputs, the width, the order or the layers."""
        bias_heads(self.distinct_layers())
        match self.positions:
            case RelativePositionsConfig():
                self.positions.check(self.order)
            case SinusoidalPositionsConfig():
                self.positions.check(self.d_model)
        if self.positions.kind == "convolution" and self.inputs.reads != "audio":
            raise ValueError(
                f"positions are convolution, which is for the places of recordings, but inputs are "
                f"{self.inputs.kind}; give inputs of recordings, or other positions"
            )
        if self.positions.kind == "sinusoidal_2d":
            if self.inputs.grid is None:
                raise ValueError(
                    f"positions are sinusoidal_2d, but inputs {self.inputs.kind} are no pictures; "
                    f"allowed: sinusoidal"
                )
            if self.d_model % 4 or self.d_model < 8:
                raise ValueError(
                    f"positions are sinusoidal_2d, which needs a d_model of 8 or more that is "
                    f"divisible by 4, and d_model is {self.d_model}"
                )

    def _check_order(self) -> None:
        """Refuse mixers that would show tokens those behind them, or in an encoder hide them."""
        for name, layer in self._named_layers():
            if layer.mixer is None:
                continue
            kind = layer.mixer.kind
            if self.order == "full" and not layer.mixer.sees_both_ways:
                raise ValueError(
                    f"order is full, but the mixer of {name}, {kind}, goes from the first token to "
                    f"the last; give mixer={{kind: bidirectional, mixer: {{kind: {kind}, ...}}}}, "
                    f"which goes both ways, or order causal"
                )
            if self.order == "causal" and not layer.mixer.is_causal:
                raise ValueError(
                    f"order is causal, but the mixer of {name}, {kind}, lets tokens see those "
                    f"behind them; give order full, or a mixer that is causal"
                )

    def _check_norms(self) -> None:
        """Refuse to leave out the norm before a mixer where there is none, or another; norms where
        layers have no place for them; and residuals that do not fit the layers."""
        placement = self.norm.placement
        for name, layer in self._named_layers():
            if not layer.mixer_norm and placement != "pre":
                raise ValueError(
                    f"{name} has mixer_norm false, which leaves out the norm before its mixer, but "
                    f"norm.placement is {placement}; allowed: with pre"
                )
            if not layer.mixer_norm and not self.residual.reads_bare:
                raise ValueError(
                    f"{name} has mixer_norm false, which leaves out the norm before its mixer, but "
                    f"residual {self.residual.kind} has other parts there; allowed: with plain"
                )
            for key, part in (("mixer", layer.mixer), ("ffn", layer.ffn)):
                if placement == "sub" and part is not None and not part.has_sub_norm:
                    raise ValueError(
                        f"norm.placement is sub, which has a norm before each output matrix, but "
                        f"the {key} of {name}, {part.kind}, has no place for it; allowed mixers: "
                        f"attention, cross_attention; allowed ffn: dense ones, such as swiglu"
                    )
        if placement in ("deepnorm", "sub") and self.inputs.own_layers:
            raise ValueError(
                f"norm.placement is {placement}, whose start of matrices goes by the number of "
                f"layers, but inputs {self.inputs.kind} have layers of their own; give another one"
            )
        if PLACEMENTS[placement].gain(max(1, count_sublayers(self.layers()))) == 0.0:
            raise ValueError(
                f"norm.placement is {placement}, whose start of matrices is 0 with a single mixer "
                f"or FFN; deepen the model, or give another one"
            )
        if self.inputs.own_layers and not self.residual.in_inputs:
            raise ValueError(
                f"residual is {self.residual.kind}, which is for the model's layers, but inputs "
                f"{self.inputs.kind} have layers of their own; give another residual"
            )
        for layers in filter(None, (self.layers(), self.inputs.own_layers)):
            self.residual.check(self.d_model, self.norm, layers, self.depth.kind)

    def _check_grid(self) -> None:
        """Refuse what reads the places of tokens in a picture where they have none."""
        if self.inputs.grid is not None:
            return
        for name, layer in self._named_layers():
            needs = layer.mixer is not None and layer.mixer.needs_grid
            what = f"mixer {layer.mixer_kind}" if needs else f"positions {layer.positions.kind}"
            if needs or (layer.uses_positions and layer.positions.kind == "axial_rope"):
                raise ValueError(
                    f"{name} has {what}, which is for the tokens of pictures, but those of inputs "
                    f"{self.inputs.kind} lie on no grid; give inputs of pictures, or leave it out"
                )

    def _named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Every layer, with its name for messages."""
        for index, layer in enumerate(self.layers()):
            yield f"layer {index}", layer
        for index, layer in enumerate(self.inputs.own_layers):
            yield f"layer {index} of the inputs", layer

    def _check_hashes(self) -> None:
        """Refuse channel mixers that read tokens where layers do not see them."""
        hidden = [layer.ffn for layer in self.inputs.own_layers]
        if not self.inputs.shows_tokens:
            hidden += [layer.ffn for layer in self.distinct_layers()]
        if any(ffn is not None and ffn.reads_tokens for ffn in hidden):
            raise ValueError(HASHES)

    @model_validator(mode="after")
    def _positions_are_used(self) -> "TrunkConfig":
        layers = self.distinct_layers()
        entries = (*self.first, *self.pattern)
        for number, (entry, layer) in enumerate(zip(entries, layers, strict=True)):
            where = _entry(number, len(self.first))
            kind = layer.positions.kind
            if entry.positions is None or kind == "none":
                continue
            if kind in OF_THE_MODEL:
                raise ValueError(
                    f"{where} has positions {kind}, which are {OF_THE_MODEL[kind]}; give "
                    f"model.positions. Allowed in an entry: rope, axial_rope, alibi, none"
                )
            if not layer.uses_positions:
                raise ValueError(
                    f"{where} has positions {kind}, which its mixer "
                    f"{layer.mixer_kind} does not use; leave them out"
                )
        is_used = any(layer.uses_positions for layer in layers)
        # RoPE is the default, even of models in which no layer uses it.
        optional = ALiBiConfig | AxialRoPEConfig | RelativePositionsConfig
        if isinstance(self.positions, optional) and not is_used:
            mixers = ", ".join(sorted({layer.mixer_kind for layer in layers}))
            raise ValueError(
                f"positions are {self.positions.kind}, which no layer uses (mixers: {mixers}); "
                f"give another kind, or none"
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
        layers = (*self.distinct_layers(), *self.inputs.own_layers)
        return tuple(layer.ffn for layer in layers if layer.ffn is not None)

    def layers_of_path(self, path: str) -> Sequence[int] | None:
        """See `DepthConfig.layers_of_path`."""
        match path.split("/"):
            case ["stack", "first", layer, *_]:
                return [int(layer.removeprefix("layer_"))]
        below = len(self.first)
        found = self.depth.layers_of_path(path, self.num_layers - below, len(self.pattern))
        return None if found is None else [below + layer for layer in found]


class EncoderConfig(TrunkConfig):
    """What reads the sources of a decoder. Tokens of an encoder see their whole document."""

    order: Literal["full"] = Field("full", description="full: tokens see all of their document")
    length: PositiveInt = Field(
        description="places of a source row, which is padded to so many: data.pairs.source_length "
        "for texts, the patches of a picture"
    )

    @model_validator(mode="after")
    def _reads_no_source(self) -> "EncoderConfig":
        for name, layer in self._named_layers():
            if layer.mixer is not None and layer.mixer.reads_source:
                raise ValueError(
                    f"{name} of the encoder has the mixer {layer.mixer.kind}, which reads what an "
                    f"encoder makes; give it in the decoder's layers, outside of encoder"
                )
        if any(isinstance(ffn, MoEConfig) and ffn.balance.bias_rate for ffn in self.ffns()):
            raise ValueError(
                "ffn has balance.bias_rate in an encoder, where biases of routers are not moved; "
                "give balance={auxiliary: 0.01} there"
            )
        if self.depth.weighs_losses:
            raise ValueError(
                f"depth {self.depth.kind} has exits, which an encoder has no outputs for; give "
                f"another depth"
            )
        if isinstance(self.inputs, PatchesConfig) and self.length != self.inputs.length:
            raise ValueError(
                f"length is {self.length}, but inputs cut a picture into {self.inputs.length} "
                f"patches; give length={self.inputs.length}"
            )
        if self.length > self.longest_row:
            raise ValueError(
                f"length is {self.length}, but positions have max_length {self.longest_row}; "
                f"shorten the rows or raise it"
            )
        return self


def _entry(number: int, first: int) -> str:
    return f"first entry {number}" if number < first else f"pattern entry {number - first}"
