"""What goes with a model of pictures: the names of its classes (`id2label` of config.json), and how
pictures are prepared (preprocessor_config.json)."""

from typing import Any

from jaxformer.checkpoint.interop.folder import PREPROCESSOR
from jaxformer.checkpoint.interop.hub_config import HubConfig, shown
from jaxformer.checkpoint.interop.source import Source
from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.model.inputs import PatchesConfig
from jaxformer.terminal import say

Json = dict[str, Any]

BICUBIC = 3  # of Pillow's resamplings, the one that pictures are resized with here
VIT: Json = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
SIGLIP: Json = VIT | {"resample": BICUBIC}
CLIP: Json = SIGLIP | {
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# Of transformers' image processors.
DEFAULTS: dict[str, Json] = {
    "ViTImageProcessor": VIT,
    "SiglipImageProcessor": SIGLIP,
    "CLIPImageProcessor": CLIP,
}
# The processor's names and layouts, none of which changes a number.
UNREAD = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "return_tensors"),
    *("do_convert_rgb", "data_format", "input_data_format", "default_to_square", "device"),
    *("disable_grouping", "crop_size", "do_pad", "pad_size"),
)


def preparation(source: Source, size: list[int], processor: str) -> tuple[Json, Json]:
    """What the inputs' section and `data.images` have of how pictures are prepared.

    Args:
        processor: the family's image processor, whose defaults stand for missing keys.

    Raises:
        UserError: pictures are prepared in a way that is not supported, or for another size.
    """
    name = f"{source.name}: {PREPROCESSOR}"
    hub = HubConfig(source.preprocessor, name, DEFAULTS[processor])
    for key in ("do_resize", "do_rescale"):
        hub.need(key, True)
    hub.need("rescale_factor", 1 / 255)
    crops = hub.flag("do_center_crop")
    prepared = _size(hub, crops) if source.preprocessor else size
    if prepared != size:
        raise UserError(
            f"{name} makes pictures of [height, width] {prepared}, but image_size of config.json "
            f"is {size}; make them the same"
        )
    resample = hub.take("resample")
    for key in UNREAD:
        hub.take(key, None)
    inputs: Json = {"mean": hub.listed("image_mean"), "std": hub.listed("image_std")}
    if not hub.flag("do_normalize"):
        inputs = {"mean": [0.0], "std": [1.0]}
    hub.finish()
    if not source.preprocessor:
        say(
            f"{source.name} has no {PREPROCESSOR}: pictures are prepared as a {processor} does by "
            f"default"
        )
    if resample != BICUBIC:
        say(
            f"{name} has resample {shown(resample)}: transformers resizes pictures otherwise than "
            f"the bicubic way of here, so that pictures of other sizes differ a little"
        )
    return inputs, {"size": size, "fit": "crop" if crops else "stretch"}


def _size(hub: HubConfig, crops: bool) -> list[int]:
    """The height and width that pictures are brought to."""
    size = hub.take("size")
    if crops:
        crop = hub.take("crop_size", size)
        shorter: Any = size.get("shortest_edge") if isinstance(size, dict) else size
        if crop not in (shorter, {"height": shorter, "width": shorter}):
            raise UserError(
                f"{hub.name} resizes to {shown(size)} and cuts {shown(crop)} out; allowed: the "
                f"whole of the shorter side, or do_center_crop false"
            )
        return [shorter, shorter]
    if type(size) is int:
        return [size, size]
    if not isinstance(size, dict) or not {"height", "width"} <= size.keys():
        raise UserError(
            f"{hub.name} has size {shown(size)}; allowed: a number, or a height and a width"
        )
    return [size["height"], size["width"]]


def class_names(config: Json, count: int, name: str) -> list[str]:
    """The names of the classes of a config.json, where one that is there twice has its number
    behind it the second time; numbers where there are none.

    Raises:
        UserError: they are not numbered from 0 on.
    """
    given = config.get("id2label") or {str(index): f"LABEL_{index}" for index in range(count)}
    if {str(key) for key in given} != {str(index) for index in range(count)}:
        raise UserError(
            f"{name}: id2label of config.json numbers its {count} classes otherwise than from 0 to "
            f"{count - 1}; number them so"
        )
    numbered = {int(key): str(label) for key, label in given.items()}
    names: dict[str, None] = {}
    for index in range(count):
        label = numbered[index]
        names[f"{label} ({index})" if label in names else label] = None
    return list(names)


def labels(names: tuple[str, ...], count: int) -> Json:
    """The keys of config.json for `count` classes, of which the first have these names."""
    every = [*names, *(f"LABEL_{index}" for index in range(len(names), count))]
    return {
        "id2label": {str(index): label for index, label in enumerate(every)},
        "label2id": {label: index for index, label in enumerate(every)},
    }


def preprocessor_config(config: Config, processor: str) -> Json:
    """The preprocessor_config.json of a run of pictures, for an image processor of transformers."""
    trunk, images = config.model.encoder or config.model, config.data.images
    inputs = trunk.inputs
    assert isinstance(inputs, PatchesConfig)
    assert images is not None
    height, width = images.size
    sides: Json = {"height": height, "width": width}
    cut: Json = {}
    if images.fit == "crop" and height == width:
        cut = {"do_center_crop": True, "crop_size": sides}
        sides = {"shortest_edge": height}
    elif images.fit == "crop":
        say(
            f"data.images.fit is crop, which transformers does not have for pictures of "
            f"{height} × {width}: {PREPROCESSOR} resizes both sides instead"
        )
    mean, std = (
        list(each) * (inputs.channels if len(each) == 1 else 1)
        for each in (inputs.mean, inputs.std)
    )
    return {
        "image_processor_type": processor,
        "do_resize": True,
        "size": sides,
        "resample": BICUBIC,
        **cut,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
