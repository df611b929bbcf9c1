"""docs/images.md: its commands run as they stand, and its sections are of a configuration."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from jaxformer.cli import main
from jaxformer.config import DataConfig
from jaxformer.config.loading import load_config
from tests.data.pictures import encoded, pixels, write_folder, write_parquet

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "images.md").read_text()
FEW = ("train.steps=2", "train.batch_size=4", "model.num_layers=1")
SHORT = (*FEW, "optimizer.schedule.warmup_steps=1", "eval.batches=1")
OF_CAPTIONS = ("model.encoder.num_layers=1",)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_commands_run_one_after_another(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    write_folder(tmp_path / "pictures", {"cat": 8, "dog": 12})
    contents = [encoded(pixels(number)) for number in range(20)]
    texts = [f"picture {number}" for number in range(20)]
    write_parquet(tmp_path / "captions.parquet", contents, texts, None, ("image", "caption"))
    (tmp_path / "photo.png").write_bytes(contents[0])
    said = ""
    for line in "".join(blocks("bash")).splitlines():
        program, *argv = shlex.split(line)
        assert program == "jaxformer"
        more = OF_CAPTIONS if "configs/captions.yaml" in argv else ()
        assert main([*argv, *((*SHORT, *more) if argv[0] == "train" else ())]) == 0, line
        printed = capfd.readouterr()
        said += printed.out + printed.err
    assert "18 pictures to train on" in said and "2 pictures to validate on" in said
    assert "cat 8, dog 12" in said
    assert "18 pictures of 32×32×3 to train on, 2 classes, augmented: pad 4, flip" in said
    assert "18 pictures of 32×32×3 to train on, texts, augmented: pad 4" in said
    assert "2 pairs: " in said and "photo.png: " in said


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_section_of_the_page_is_one_of_a_configuration(block: str) -> None:
    data = DataConfig.model_validate(yaml.safe_load(block)["data"])
    assert data.images is not None
    assert data.tokenizer == ("classes" if data.images.text is None else "bytes")


@pytest.mark.parametrize(("place", "name"), [(0, "pictures"), (-1, "captions")])
def test_the_first_and_last_sections_are_those_of_configurations(place: int, name: str) -> None:
    config = load_config(REPOSITORY / "configs" / f"{name}.yaml")
    assert DataConfig.model_validate(yaml.safe_load(blocks("yaml")[place])["data"]) == config.data
