import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from jaxformer.arena.config import load_arena
from jaxformer.cli import _parse, main
from jaxformer.config import Config, DataConfig
from jaxformer.config.loading import load_config

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
DOCUMENTS = "\n".join([README, *(file.read_text() for file in (REPOSITORY / "docs").glob("*.md"))])
CHEAP = ("list", "schema")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


LINES = [line for block in blocks("bash", DOCUMENTS) for line in block.splitlines()]


def arguments_of(line: str) -> list[str] | None:
    """What the `jaxformer` command gets from a line of the README, None for another program."""
    match shlex.split(line):
        case ["jaxformer", *argv]:
            return argv
        case ["python", "train.py" | "eval.py" as script, *argv]:
            return [script.removesuffix(".py"), *argv]
    return None


COMMANDS = [line for line in LINES if arguments_of(line)]


def test_the_readme_shows_each_command():
    shown = {arguments_of(line)[0] for line in COMMANDS}
    assert {"train", "eval", "generate", "plot", "list"} <= shown


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_parses_and_its_configuration_loads(line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    arguments = _parse(arguments_of(line))
    if "config" in arguments:
        load_config(arguments.config, arguments.overrides)
    if "arena" in arguments and not arguments.all:
        load_arena(arguments.arena, arguments.overrides)


@pytest.mark.parametrize("line", [line for line in COMMANDS if arguments_of(line)[0] in CHEAP])
def test_a_cheap_command_of_the_readme_runs(line, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(arguments_of(line)) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_a_make_target_of_the_readme_exists(line):
    process = subprocess.run(
        [*shlex.split(line), "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    targets = ("configs/quickstart.yaml", "pytest", "benchmarks/step.py")
    assert any(target in process.stdout for target in targets)


def test_the_yaml_of_the_readme_is_a_whole_configuration(tmp_path):
    hybrid, whole, mesh = blocks("yaml")
    file = tmp_path / "c.yaml"
    file.write_text(whole)
    assert load_config(file).optimizer.learning_rate == 1e-3
    file.write_text(whole + mesh)
    assert load_config(file).mesh.rules.vocab == ("tensor", "fsdp")
    file.write_text(hybrid)
    kinds = [layer.mixer.kind for layer in load_config(file).model.layers()]
    assert kinds == ["gated_delta", "gated_delta", "attention"] * 3


def test_the_first_python_example_runs():
    example = blocks("python")[0] + "\nassert logits.shape == (1, 16, 257)\n"
    subprocess.run([sys.executable, "-c", example], cwd=REPOSITORY, check=True)


def test_every_file_the_readme_names_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    named = re.findall(r"`(configs/[^`{}]+)`", README)
    braces = re.findall(r"`configs/models/([^`{}]*)\{([^`}]+)\}\.yaml`", README)
    listed = [
        f"configs/models/{prefix}{name}.yaml"
        for prefix, names in braces
        for name in names.split(",")
    ]
    for name in [*links, *named, *listed]:
        assert (REPOSITORY / name).exists(), name
    models = {f"configs/models/{file.name}" for file in (REPOSITORY / "configs/models").iterdir()}
    assert models <= {*named, *listed}


def test_the_readme_names_every_extra():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    installing = README[README.index("## Installing without make") :]
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in installing, extra


def test_contributing_names_every_package_and_nothing_that_is_not_there():
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    folders = [file.parent.name for file in (REPOSITORY / "jaxformer").glob("*/__init__.py")]
    assert [name for name in folders if f"`jaxformer/{name}/`" not in page] == []
    for named in re.findall(r"^\| `(jaxformer/[^`]+)`", page, flags=re.MULTILINE):
        assert list(REPOSITORY.glob(named)), named


def test_the_data_of_the_page_on_instructions_are_sections_of_a_configuration():
    page = (REPOSITORY / "docs" / "instruction_data.md").read_text()
    one, mixture = (yaml.safe_load(block)["data"] for block in blocks("yaml", page))
    assert DataConfig.model_validate(one).sources[0].column == "messages"
    formats = [source.format for source in DataConfig.model_validate(mixture).sources]
    assert formats == ["messages", "completion", "text"]


def test_the_mixtures_of_the_page_on_your_own_data_are_sections_of_configurations():
    *mixtures, _ = blocks("yaml", (REPOSITORY / "docs" / "your_data.md").read_text())
    sections = [DataConfig.model_validate(yaml.safe_load(each)["data"]) for each in mixtures]
    columns = [[source.column for source in section.sources] for section in sections]
    assert columns == [
        ["text", "body", "body"],
        ["body", "body", "text", "json.caption", "text"],
    ]


def test_the_stages_of_the_page_on_your_own_data_are_as_it_says():
    *_, sections = blocks("yaml", (REPOSITORY / "docs" / "your_data.md").read_text())
    config = load_config(REPOSITORY / "configs/quickstart.yaml").model_dump(mode="json")
    config |= {name: config[name] | keys for name, keys in yaml.safe_load(sections).items()}
    stages = Config.model_validate(config).stages
    assert [stage.until - stage.start for stage in stages] == [1000, 7000, 1000, 1000]
    assert [stage.batch_size for stage in stages] == [16, 32, 32, 8]
    assert [stage.data.sequence_length for stage in stages] == [256, 256, 256, 1024]
    assert [len(stage.data.sources) for stage in stages] == [1, 1, 2, 1]


def test_the_commands_of_the_page_on_pods_take_a_profile_and_read_it(tmp_path, monkeypatch, capsys):
    page = (REPOSITORY / "docs" / "pods.md").read_text()
    lines = [line for line in page.splitlines() if "runs/profiled" in line]
    train, profile = (arguments_of(line) for line in lines if arguments_of(line))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    small = ["model.num_layers=1", "data.sequence_length=32", "train.batch_size=2", "eval.every=99"]
    short = ["train.steps=14", "optimizer.schedule.warmup_steps=2", f"data.cache_dir={tmp_path}"]
    assert main([*train, *small, *short]) == 0
    capsys.readouterr()
    assert main(profile) == 0
    assert "mixer attention, layers 0 " in capsys.readouterr().out


def test_the_data_commands_of_the_page_on_your_own_data_run(tmp_path, monkeypatch, capsys):
    page = (REPOSITORY / "docs" / "your_data.md").read_text()
    [conversation], [template] = blocks("json", page), blocks("jinja", page)
    text = "The captain sailed to an island. " * 40
    files = {
        "books/one.txt": text,
        "other/one.txt": "Another text. ",
        "posts/one.jsonl": json.dumps({"body": text}) + "\n",
        "chats.jsonl": conversation * 20,
        "tokenizers/books/chat_template.jinja": template,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    small = ["data.sequence_length=32", f"data.cache_dir={tmp_path / 'stores'}"]
    lines = [line for block in blocks("bash", page) for line in block.splitlines()]
    commands = [argv for argv in map(arguments_of, lines) if argv[0] == "data"]
    assert {argv[1] for argv in commands} == {"prepare", "inspect", "train-tokenizer"}
    for argv in commands:
        assert main([*argv, *small]) == 0, capsys.readouterr().err
    assert "⟦The captain did.<|endoftext|>⟧" in capsys.readouterr().out
