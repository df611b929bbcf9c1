"""A model of pictures in Hugging Face's layout becomes a run that knows its classes, and comes out
as it went in."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxformer as jf
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.checkpoint.interop.table import Table
from jaxformer.cli import main
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from tests.checkpoint.interop.models import write_tensors
from tests.data.pictures import encoded, pixels, write_folder
from tests.runs import saved_arrays

Json = dict[str, Any]
ANIMALS = ["cat", "crane", "crane"]
CONFIG: Json = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": [8, 12],
    "patch_size": 4,
    "id2label": {str(index): name for index, name in enumerate(ANIMALS)},
    "pooler_act": "tanh",
}
PREPROCESSOR: Json = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 8, "width": 12},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def vit_tensors(config: Json = CONFIG) -> dict[str, np.ndarray]:
    family = FAMILIES["vit"]
    table = Table(family, ModelConfig.model_validate(family.read(config)))
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for rule in table.rules
        for name, shape in table.stored(rule).items()
    }


def write_vit(
    folder: Path,
    config: Json = CONFIG,
    preprocessor: Json | None = PREPROCESSOR,
    tensors: dict[str, np.ndarray] | None = None,
) -> HuggingFaceFolder:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    write_tensors(folder / "model.safetensors", tensors or vit_tensors(config))
    return HuggingFaceFolder(folder)


def test_a_vit_comes_out_as_it_went_in(tmp_path: Path) -> None:
    config = import_model(write_vit(tmp_path / "model"), tmp_path / "run")
    assert config.data.images is not None
    assert config.data.images.size == (8, 12)
    assert config.data.images.fit == "stretch"
    assert config.model.inputs.mean == (0.485, 0.456, 0.406)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    written = HuggingFaceFolder(tmp_path / "out")
    expected = vit_tensors()
    assert written.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(written.read(name), tensor)
    assert written.preprocessor == PREPROCESSOR | {"resample": 3}
    assert written.config["id2label"] == {"0": "cat", "1": "crane", "2": "crane (2)"}
    assert written.config["label2id"] == {"cat": 0, "crane": 1, "crane (2)": 2}
    assert written.config["layer_norm_eps"] == 1e-12
    import_model(written, tmp_path / "again")
    assert jf.load(tmp_path / "again").tokenizer.names == ("cat", "crane", "crane (2)")


def test_an_imported_vit_names_classes_is_evaluated_and_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_model(write_vit(tmp_path / "model"), tmp_path / "run")
    run = str(tmp_path / "run")
    (tmp_path / "one.png").write_bytes(encoded(pixels(0, 8, 12)))
    assert main(["predict", run, str(tmp_path / "one.png"), "--json"]) == 0
    [said] = json.loads(capsys.readouterr().out)
    assert set(said["classes"]) == {"cat", "crane", "crane (2)"}

    source = write_folder(tmp_path / "animals", {"cat": 2, "crane": 2})
    store = f"data.store_dir={tmp_path / 'stores'}"
    assert main(["eval", run, f"data.validation_source={source}", store, "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["accuracy"] <= 1

    config = jf.load_config(
        tmp_path / "run/config.yaml",
        [
            f"init.from={run}",
            f"run.dir={tmp_path / 'tuned'}",
            f"data.source={source}",
            store,
            "data.validation_fraction=0",
            "train.steps=1",
            "train.batch_size=2",
            "optimizer.schedule.warmup_steps=0",
        ],
    )
    from jaxformer.train.run import train

    assert train(config) == 0
    before, after = (
        saved_arrays(tmp_path / name, step) for name, step in (("run", 0), ("tuned", 1))
    )
    head = next(name for name in before if "head_bias" in name)
    assert np.abs(before[head] - after[head]).max() > 0


def test_a_vit_without_classifier_starts_with_one_of_zeros(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of a ViTModel, whose names have no prefix, and which has a pooler."""
    tensors = {
        name.removeprefix("vit."): tensor
        for name, tensor in vit_tensors().items()
        if not name.startswith("classifier")
    }
    tensors["pooler.dense.weight"] = np.ones((8, 8), np.float32)
    source = write_vit(tmp_path / "model", CONFIG, None, tensors)
    import_model(source, tmp_path / "run")
    said = capsys.readouterr().err
    assert "has no classifier.weight and no classifier.bias: they start at zero" in said
    assert "has no preprocessor_config.json" in said
    run = jf.load(tmp_path / "run")
    np.testing.assert_array_equal(run.params["head"], 0)
    np.testing.assert_array_equal(
        run.params["class_token"], tensors["embeddings.cls_token"].reshape(-1)
    )


def test_half_of_a_classifier_is_refused(tmp_path: Path) -> None:
    tensors = vit_tensors()
    del tensors["classifier.bias"]
    with pytest.raises(UserError, match=r"missing   classifier\.bias"):
        import_model(write_vit(tmp_path / "model", tensors=tensors), tmp_path / "run")


def test_pictures_that_are_cut_stay_so(tmp_path: Path) -> None:
    config = CONFIG | {"image_size": 8}
    cut = PREPROCESSOR | {
        "size": {"shortest_edge": 8},
        "do_center_crop": True,
        "crop_size": {"height": 8, "width": 8},
        "do_normalize": False,
    }
    made = import_model(write_vit(tmp_path / "model", config, cut), tmp_path / "run")
    assert made.data.images.fit == "crop"
    export_model(tmp_path / "run", tmp_path / "out")
    written = HuggingFaceFolder(tmp_path / "out").preprocessor
    assert {key: written[key] for key in ("size", "do_center_crop", "crop_size")} == {
        key: cut[key] for key in ("size", "do_center_crop", "crop_size")
    }
    assert written["image_mean"] == [0.0] * 3
    assert written["image_std"] == [1.0] * 3


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        ({"patch_size": [4, 2]}, {}, "patch_size [4, 2]; allowed: square patches"),
        ({"patch_size": 5}, {}, "inputs.size [8, 12] is not divisible by inputs.patch 5"),
        ({"image_size": "8"}, {}, "image_size '8'; allowed: a number, or [height, width]"),
        ({"image_size": [8, 0]}, {}, "image_size [8, 0]; allowed: from 1 to 4096 pixels"),
        ({"hidden_act": "selu"}, {}, "hidden_act 'selu'"),
        ({"num_labels": 4}, {}, "num_labels 4, but 3 names in id2label"),
        ({"id2label": {"1": "cat", "2": "dog"}}, {}, "otherwise than from 0 to 1"),
        ({"num_channels": 2}, {}, "inputs.mean has 3 numbers for 2 channels"),
        ({}, {"size": 8}, "[8, 8], but image_size of config.json is [8, 12]"),
        ({}, {"size": {"longest_edge": 8}}, "allowed: a number, or a height and a width"),
        ({}, {"do_resize": False}, "do_resize False"),
        ({}, {"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({}, {"do_center_crop": True, "crop_size": 4}, "allowed: the whole of the shorter side"),
        ({}, {"do_flip": True}, "do_flip True"),
    ],
)
def test_what_would_be_another_model_is_refused(
    tmp_path: Path, config: Json, preprocessor: Json, message: str
) -> None:
    source = write_vit(tmp_path / "model", tensors=vit_tensors())
    source.config |= config
    source.preprocessor |= preprocessor
    with pytest.raises(UserError, match=re.escape(message)):
        import_model(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
