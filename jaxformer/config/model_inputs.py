"""Whether a model reads what the data has, and learns what is in it."""

from jaxformer.config.data import DataConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import InputsConfig, PatchesConfig, RecordingsConfig
from jaxformer.objectives import ObjectiveConfig


def check_inputs(model: ModelConfig, data: DataConfig, objective: ObjectiveConfig) -> None:
    """Raise ValueError, with what to give instead, if they do not fit each other."""
    if data.kind == "pairs" and model.encoder is None:
        raise ValueError(
            "data.kind is pairs, but model.encoder, which reads their sources, is null; give "
            f"model.encoder={{length: {data.source_length}, d_model: ..., num_layers: ..., ...}}, "
            f"or data.kind=text"
        )
    if data.kind != (reads := model.reads):
        part, inputs = _inputs(model)
        raise ValueError(
            f"data.kind is {data.kind}, but {part} {inputs.kind} reads {reads}; give "
            f"data.kind={reads}, or other inputs"
        )
    if data.images is not None:
        _check_pictures(model, data, objective)
    if data.audio is not None:
        _check_recordings(model, data, objective)
    if data.writes:
        _check_decoder(model, data, objective)


def _inputs(model: ModelConfig) -> tuple[str, InputsConfig]:
    """What reads the data, with its key."""
    if model.encoder is None:
        return "model.inputs", model.inputs
    return "model.encoder.inputs", model.encoder.inputs


def _check_pictures(model: ModelConfig, data: DataConfig, objective: ObjectiveConfig) -> None:
    images, encoder = data.images, model.encoder
    part, inputs = _inputs(model)
    assert images is not None and isinstance(inputs, PatchesConfig)
    shape = (*inputs.size, inputs.channels)
    if images.shape != shape:
        raise ValueError(
            f"data.images has pictures of [height, width, channels] {list(images.shape)}, but "
            f"{part} reads {list(shape)}; make size and channels the same in both"
        )
    if encoder is None and data.sequence_length != inputs.length:
        raise ValueError(
            f"data.sequence_length is {data.sequence_length}, but model.inputs cuts a picture into "
            f"{inputs.length} patches; give data.sequence_length={inputs.length}"
        )
    if encoder is None and images.text is not None:
        raise ValueError(
            f"data.images.text is {images.text}, but model.encoder is null, and what reads "
            f"pictures beside their texts is an encoder; give model.encoder and "
            f"model.outputs={{kind: contrastive, ...}}, or leave it out"
        )
    if encoder is not None and images.text is None:
        raise ValueError(
            "model.encoder reads pictures and the model texts, but data.images.text is null; give "
            "the column of the texts, such as data.images.text=caption"
        )
    outputs = model.outputs
    is_other = not (objective.of_rows or objective.of_numbers or outputs.of_rows)
    if images.text is None and is_other and not outputs.of_numbers:
        raise ValueError(
            f"data.kind is images, whose classes train.objective classes learns, but "
            f"train.objective is {objective.kind}; give train.objective={{kind: classes}} with "
            f"model.outputs={{kind: classes}}, or {{kind: masked_patches}}, which learns from the "
            f"pictures alone"
        )


def _check_recordings(model: ModelConfig, data: DataConfig, objective: ObjectiveConfig) -> None:
    audio, encoder = data.audio, model.encoder
    part, inputs = _inputs(model)
    assert audio is not None and isinstance(inputs, RecordingsConfig)
    if encoder is None and audio.source_length is not None:
        raise ValueError(
            f"data.audio.source_length is {audio.source_length}, but model.encoder, which reads "
            f"the recordings whose texts a decoder writes, is null; give it, or leave "
            f"source_length out"
        )
    if encoder is not None and audio.source_length is None:
        raise ValueError(
            f"model.encoder reads recordings and the model writes their texts, but "
            f"data.audio.source_length is null; give data.audio.source_length={encoder.length}"
        )
    for key, given, own in (
        ("sample_rate", audio.sample_rate, inputs.sample_rate),
        ("samples_per_place", audio.samples_per_place, inputs.samples),
    ):
        if given != own:
            raise ValueError(
                f"data.audio.{key} is {given}, and that of {part} {inputs.kind} is {own}; give "
                f"data.audio.{key}={own}"
            )
    if audio.pack:
        inputs.check_packed(model.positions)
    if audio.pack and objective.of_rows:
        raise ValueError(
            f"data.audio.pack is true, but train.objective {objective.kind} gives every row one "
            f"class; leave it out"
        )
    key, _ = audio.target
    needed = {"text": "ctc", "label": "classes"}[key]
    if objective.kind != needed and not objective.of_numbers and not data.writes:
        raise ValueError(
            f"data.audio.{key} is given, which train.objective {needed} learns, but "
            f"train.objective is {objective.kind}; give train.objective={{kind: {needed}}}, or the "
            f"other of data.audio.text and data.audio.label"
        )


def _check_decoder(model: ModelConfig, data: DataConfig, objective: ObjectiveConfig) -> None:
    if objective.kind != "next_token":
        raise ValueError(
            f"a decoder writes the targets of data.{data.kind}, which train.objective next_token "
            f"learns, but train.objective is {objective.kind}; leave it out"
        )
    if model.encoder is not None and model.encoder.length != data.source_length:
        raise ValueError(
            f"model.encoder.length is {model.encoder.length}, but rows of data.{data.kind} have "
            f"{data.source_length} places for sources; make them the same"
        )
