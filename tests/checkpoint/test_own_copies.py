"""What a run keeps of others: its tokenizer, and the weights under its adapters."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer.checkpoint import own_copies
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.checkpoint.own_copies import keep_tokenizer, keep_weights
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.checkpoint.weights import find_weights
from jaxformer.config.loading import load_config
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from tests.checkpoint.interop.models import write_tokenizer
from tests.checkpoint.test_manager import like, make_trees, save
from tests.runs import make_config

ROLE = "under the adapters"


@pytest.fixture
def tokenizer_folder(tmp_path) -> Path:
    folder = tmp_path / "original"
    folder.mkdir()
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "model.safetensors").write_text("none of it")
    return folder


def run_with(tmp_path: Path, tokenizer: str) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(make_config(tmp_path, data={"tokenizer": tokenizer}))
    keep_tokenizer(directory, load_tokenizer(tokenizer))
    (directory.checkpoints / "4").mkdir(parents=True)
    return directory


def test_the_tokenizers_files_are_copied_and_the_copy_is_read(tokenizer_folder, tmp_path):
    original = load_tokenizer(str(tokenizer_folder))
    directory = run_with(tmp_path, str(tokenizer_folder))
    assert {file.name for file in directory.tokenizer.iterdir()} == {
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    shutil.rmtree(tokenizer_folder)
    moved = directory.path.rename(tmp_path / "moved")
    config = load_config(moved)
    copy = load_tokenizer(config.data.tokenizer)
    assert copy.fingerprint == original.fingerprint
    assert copy.find("chat_template.jinja").read_text() == "{{ messages }}"
    assert RunDirectory(moved).recorded(config).data.tokenizer == str(tokenizer_folder)


def test_a_file_of_any_name_is_kept_as_tokenizer_json(tokenizer_folder, tmp_path):
    file = (tokenizer_folder / "tokenizer.json").rename(tokenizer_folder / "mine.json")
    directory = run_with(tmp_path, str(file))
    kept = load_tokenizer(str(directory.tokenizer))
    assert kept.fingerprint == load_tokenizer(str(file)).fingerprint


def test_the_original_configuration_reads_the_original_and_where_it_is_gone_the_copy(
    tokenizer_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = make_config(tmp_path, data={"tokenizer": "original"})
    directory = run_with(tmp_path, "original")
    assert directory.with_own_copies(given).data.tokenizer == "original"
    shutil.rmtree(tokenizer_folder)
    directory.check(given)
    assert directory.with_own_copies(given).data.tokenizer == str(directory.tokenizer)
    with pytest.raises(UserError, match="data.tokenizer: .*original.* before, .*bytes.* now"):
        directory.check(make_config(tmp_path))
    assert load_config(directory.path, ["data.tokenizer=bytes"]).data.tokenizer == "bytes"


def test_a_tokenizer_of_the_hub_is_kept_too(tokenizer_folder, tmp_path, monkeypatch):
    def download(name: str, file: str) -> str:
        assert name == "org/name"
        if not (tokenizer_folder / file).exists():
            raise huggingface_hub.errors.EntryNotFoundError(file)
        return str(tokenizer_folder / file)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    directory = run_with(tmp_path, "org/name")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)  # nobody answers any more
    given = make_config(tmp_path, data={"tokenizer": "org/name"})
    for config in (load_config(directory.path), directory.with_own_copies(given)):
        load_tokenizer(config.data.tokenizer)
        assert directory.recorded(config).data.tokenizer == "org/name"


def test_files_that_change_while_they_are_copied_are_found_out(tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a"}))
    with pytest.raises(UserError, match="changed while the run started; start it again"):
        keep_tokenizer(RunDirectory(tmp_path / "run"), tokenizer)
    assert not list((tmp_path / "run").iterdir())


def test_another_tokenizer_before_the_first_checkpoint_takes_the_place_of_the_first(
    tokenizer_folder, tmp_path
):
    directory = run_with(tmp_path, str(tokenizer_folder))
    shutil.rmtree(directory.checkpoints)
    directory.manifest.write_text("{}")
    directory.create(make_config(tmp_path))
    assert not directory.tokenizer.exists()
    assert load_config(directory.path).data.tokenizer == "bytes"


def test_the_tokenizer_file_of_an_old_import_is_found_when_it_was_moved(tokenizer_folder, tmp_path):
    old = tmp_path / "imported"
    shutil.copytree(tokenizer_folder, old)
    config = make_config(tmp_path, data={"tokenizer": f"{old}/tokenizer.json"})
    (old / "config.yaml").write_text(config.model_dump_json())
    (old / "checkpoints/0").mkdir(parents=True)
    moved = old.rename(tmp_path / "moved")
    assert load_config(moved).data.tokenizer == f"{moved}/tokenizer.json"


def test_copies_stay_where_the_same_original_is_named_in_another_way(
    tokenizer_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = run_with(tmp_path, "~/original")
    shutil.rmtree(tokenizer_folder)
    config = make_config(tmp_path, data={"tokenizer": str(tokenizer_folder)})
    directory.check(config)
    directory.create(config)
    assert directory.with_own_copies(config).data.tokenizer == str(directory.tokenizer)
    assert load_config(directory.path).data.tokenizer == str(directory.tokenizer)


@pytest.fixture
def base(tmp_path, tokenizer_folder) -> RunDirectory:
    """An old import with two checkpoints and a moving average, whose tokenizer lies beside them."""
    directory = RunDirectory(tmp_path / "base")
    directory.make()
    shutil.copyfile(tokenizer_folder / "tokenizer.json", directory.path / "tokenizer.json")
    tokenizer = {"tokenizer": f"{directory.path}/tokenizer.json"}
    directory.create(make_config(tmp_path, run={"dir": str(directory.path)}, data=tokenizer))
    directory.write_manifest({"of": "base"})
    with Checkpoints(directory.checkpoints, keep_newest=2) as checkpoints:
        for step in (1, 2):
            trees = make_trees(step)
            save(checkpoints, step, trees | {"ema": make_trees(10 * step)["params"]})
    return directory


@pytest.fixture
def adapters(tmp_path, base) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    lora = {"init": {"from": str(base.path)}, "lora": {"rank": 2}}
    directory.create(make_config(tmp_path, **lora))
    directory.write_manifest({"of": "adapters"})
    return directory


def arrays_of(path: Path) -> list[np.ndarray]:
    weights = find_weights(path)
    wanted = like({"ema": make_trees()["params"]})["ema"]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(weights.restore(wanted).params)]


def test_the_weights_under_adapters_are_kept_as_a_run_of_one_step(base, adapters, tmp_path):
    before = arrays_of(base.checkpoints / "1")
    keep_weights(adapters.base, find_weights(base.checkpoints / "1"), ROLE)
    one = next(file for file in (base.checkpoints / "1/ema").rglob("*") if file.is_file())
    copy = adapters.base / one.relative_to(base.path)
    assert copy.samefile(one)  # a second name, which takes no room

    assert {each.name for each in (adapters.base / "checkpoints/1").iterdir()} == {
        "ema",
        "manifest.json",
    }
    assert json.loads((adapters.base / "manifest.json").read_text()) == {"of": "base"}
    assert (adapters.base / "tokenizer/tokenizer.json").is_file()
    shutil.rmtree(base.path)
    moved = adapters.path.rename(tmp_path / "moved")
    config = load_config(moved)
    assert config.init.source == str(moved / "base")
    assert RunDirectory(moved).recorded(config).init.source == str(base.path)
    for now, then in zip(arrays_of(moved / "base"), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_where_there_are_no_links_the_files_are_copied(base, adapters, monkeypatch, capsys):
    def refused(*arguments: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr("jaxformer.terminal.FIRST_LINE_SECONDS", 0.0)
    keep_weights(adapters.base, find_weights(base.path), ROLE)
    one = next(file for file in (base.checkpoints / "2/ema").rglob("*") if file.is_file())
    assert not (adapters.base / one.relative_to(base.path)).samefile(one)
    for now, then in zip(arrays_of(adapters.base), arrays_of(base.path), strict=True):
        np.testing.assert_array_equal(now, then)
    assert f"keeping {base.path}/checkpoints/2 under the adapters: " in capsys.readouterr().err


def test_a_disk_without_room_for_copies_is_refused_and_nothing_is_left(base, adapters, monkeypatch):
    monkeypatch.setattr(own_copies, "_link", lambda *_: False)
    usage = shutil.disk_usage(adapters.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=7))
    with pytest.raises(UserError, match=r"with 7 bytes free, but the weights that the run keeps"):
        keep_weights(adapters.base, find_weights(base.path), ROLE)
    assert {each.name for each in adapters.path.iterdir()} == {"config.yaml", "manifest.json"}


def test_a_copy_that_was_interrupted_is_not_there_and_is_made_anew(base, adapters, monkeypatch):
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    weights = find_weights(base.path)
    with monkeypatch.context() as patch:
        patch.setattr(own_copies, "_describe", killed)
        patch.setattr(own_copies, "remove_tree", lambda _: None)  # as kill -9 would leave it
        with pytest.raises(KeyboardInterrupt):
            keep_weights(adapters.base, weights, ROLE)
    assert (adapters.path / ".base.building").is_dir() and not adapters.base.exists()
    assert load_config(adapters.path).init.source == str(base.path)
    keep_weights(adapters.base, weights, ROLE)
    names = {each.name for each in adapters.path.iterdir()}
    assert names == {"base", "config.yaml", "manifest.json"}


def test_a_base_that_goes_while_it_is_kept_is_named(base, adapters):
    weights = find_weights(base.path)
    shutil.rmtree(base.checkpoints / "2")
    with pytest.raises(UserError, match=r"checkpoints/2.* disappeared while it was kept under"):
        keep_weights(adapters.base, weights, ROLE)
    assert not adapters.base.exists()
