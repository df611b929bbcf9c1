"""Every path that is given goes by one function, whichever command takes it."""

from pathlib import Path

import pytest

from jaxformer.cli import main
from jaxformer.config.loading import load_config
from jaxformer.errors import UserError
from jaxformer.paths import local_path, locate_path
from tests.runs import make_config, write_config

SCHEMES = ("s3://bucket/x", "hdfs://host/x", "az://container/x", "file:///tmp/x")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The home directory, with a configuration in it; another folder is the working directory."""
    (tmp_path / "home").mkdir()
    write_config(make_config(tmp_path), tmp_path / "home/c.yaml")
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_a_tilde_is_the_home_directory_and_an_unknown_user_is_named(home):
    assert locate_path("~/runs/x") == home / "runs/x"
    assert local_path("~") == home
    assert locate_path("a~b") == Path("a~b")
    with pytest.raises(UserError, match="'~nobody_here/x': ~nobody_here stands for a user's home"):
        locate_path("~nobody_here/x")


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_that_cannot_be_served_says_what_is_allowed(name):
    allowed = "allowed: a path on a disk, or gs://BUCKET/FOLDER"
    with pytest.raises(UserError, match=f"'{name}' is a place that cannot be used here; {allowed}"):
        locate_path(name)
    with pytest.raises(UserError, match="cannot be used here; allowed: a path on a disk"):
        local_path(name)


def test_a_file_url_is_told_its_path_and_what_has_to_be_on_a_disk_takes_no_bucket():
    with pytest.raises(UserError, match="write /tmp/x$"):
        locate_path("file:///tmp/x")
    with pytest.raises(UserError, match="'gs://b/x' is a place that cannot be used here; allowed:"):
        local_path("gs://b/x")


@pytest.mark.parametrize(
    "override",
    [
        "data.cache_dir=gs://b/x",
        "data.cache_dir=s3://b/x",
        "data.source=hf:gs://b/x",
        "data.validation_source=hf:https://host/x",
        "data.tokenizer=s3://b/x",
        "eval.tasks_dir=gs://b/x",
        "init.from=az://b/x",
        "run.dir=hdfs://b/x",
    ],
)
def test_a_configuration_names_the_key_whose_place_cannot_be_used(home, override):
    key, _, value = override.partition("=")
    place = value[value.index(":") + 1 :] if value.startswith("hf:") else value
    with pytest.raises(UserError) as error:
        load_config(home / "c.yaml", [override])
    assert key.rpartition(".")[2].removeprefix("validation_") in str(error.value)
    assert f"'{place}' is a place that cannot be used here; allowed: " in str(error.value)


COMMANDS = (
    ["train", "PLACE/c.yaml"],
    ["plan", "PLACE/c.yaml", "--topology", "v5e-4"],
    ["data", "prepare", "PLACE/c.yaml"],
    ["data", "train-tokenizer", "~/c.yaml", "--vocab-size", "300", "--out", "PLACE/t.json"],
    ["arena", "PLACE/a.yaml"],
    ["arena", "~", "--all", "--out", "PLACE/findings.md"],
    ["arena", "PLACE", "--all"],
    ["eval", "PLACE/run"],
    ["eval", "~/run", "--tasks-dir", "PLACE/tasks"],
    ["generate", "PLACE/run", "--prompt", "a"],
    ["export", "PLACE/run", "out"],
    ["export", "~/run", "PLACE/out"],
    ["import", "PLACE/model", "out"],
    ["import", "~/model", "PLACE/out"],
    ["plot", "PLACE/run", "--out", "x.png"],
    ["plot", "~/run", "--out", "PLACE/x.png"],
    ["checkpoint", "ls", "PLACE/run"],
    ["checkpoint", "diff", "~/run", "PLACE/run"],
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_takes_another_scheme_or_makes_a_folder_of_its_name(home, arguments, capsys):
    assert main([word.replace("PLACE", "s3://b") for word in arguments]) == 2
    error = capsys.readouterr().err
    assert "'s3://b" in error and "allowed: a path on a disk" in error
    assert not list(Path.cwd().iterdir())


def test_folders_that_are_written_are_made_in_the_home_directory(home, capsys):
    (home / "text.txt").write_text("one two three " * 99)
    data = ["data.source=text:~/text.txt", "data.cache_dir=~/stores", "data.tokenizer=~/t.json"]
    words = ["--vocab-size", "260", "--out", "~/t.json"]
    assert main(["data", "train-tokenizer", "~/c.yaml", *words, data[0]]) == 0
    assert main(["data", "prepare", "~/c.yaml", *data]) == 0
    assert {"stores", "t.json"} <= {each.name for each in home.iterdir()}
    assert not list(Path.cwd().iterdir())
