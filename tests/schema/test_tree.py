from jaxformer.config import Config, DataConfig, OptimizerUnion, TrainConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.dims import InitConfig
from jaxformer.model.layer import LayerConfig
from jaxformer.schema.tree import (
    choices,
    describe,
    describe_field,
    kinds_of,
    section_classes,
    select,
)


def test_a_field_is_described_with_its_bounds():
    fields = TrainConfig.model_fields
    assert describe_field(fields["steps"]) == "a whole number above 0"
    assert describe_field(fields["z_loss"]) == "a number of at least 0"
    assert describe_field(fields["ema_decay"]) == "a number above 0 and below 1 or null"
    assert describe_field(fields["precision"]) == "float32 or bfloat16"
    assert describe_field(fields["unroll_layers"]) == "true or false or auto"
    assert describe_field(DataConfig.model_fields["sequence_length"]) == (
        "a whole number of at least 2"
    )
    assert describe_field(InitConfig.model_fields["std"]) == "a number above 0 or fan_in"


def test_sections_and_lists_are_described_by_their_keys():
    assert describe_field(DataConfig.model_fields["source"]) == (
        "text or a list, each item a section with the keys source, weight, format, column"
    )
    assert describe(OptimizerUnion) == (
        "a section whose kind is adamw, lion, adafactor, muon or sgd"
    )
    assert describe_field(LayerConfig.model_fields["positions"]) == (
        "a section whose kind is none, learned, sinusoidal, sinusoidal_2d, convolution, rope, "
        "axial_rope, alibi or relative or null"
    )


def test_every_key_of_the_configuration_can_be_described():
    sections = [Config]
    for section in sections:  # the loop adds to the list that it reads
        for field in section.model_fields.values():
            assert describe_field(field)
            inner = section_classes(field.annotation)  # a mixer may hold a mixer
            sections += [each for each in inner if each not in sections]


def test_a_union_is_selected_by_kind_and_a_lone_class_by_itself():
    assert kinds_of(select(OptimizerUnion, "lion")) == ("lion",)
    assert select(OptimizerUnion, "adamq") is None
    assert select(Config.model_fields["model"].annotation, None) is ModelConfig


def test_choices_are_the_words_a_literal_allows():
    assert choices(TrainConfig.model_fields["remat"].annotation) == ("none", "dots", "full")
    assert choices(TrainConfig.model_fields["unroll_layers"].annotation) == ("auto",)
    assert choices(TrainConfig.model_fields["steps"].annotation) == ()
