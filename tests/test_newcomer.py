"""A newcomer's path through the commands: train, then every command that the end of it prints."""

import json
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO

import pytest

from jaxformer.cli import main
from tests.runs import make_config, write_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and what training it printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    config = make_config(folder, eval={"sample_tokens": 8})
    file = write_config(config, folder / "c.yaml")
    with redirect_stdout(StringIO()) as printed:
        assert main(["train", str(file)]) == 0
    return folder / "run", printed.getvalue()


def command_after(label: str, text: str) -> list[str]:
    """The arguments of the `jaxformer` command that a finished run prints behind a label."""
    line = re.search(rf"^{label}: +(.*)$", text, flags=re.MULTILINE).group(1)
    match shlex.split(line):
        case ["python", "train.py" | "eval.py" as script, *argv]:
            return [script.removesuffix(".py"), *argv]
        case ["jaxformer", *argv]:
            return argv
    raise AssertionError(f"no command of ours: {line}")


def test_a_run_is_one_directory(trained):
    run, _ = trained
    assert {file.name for file in run.iterdir()} >= {
        "checkpoints",
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "samples.txt",
        "tensorboard",
    }


def test_the_printed_commands_work_as_they_stand(trained, tmp_path, capsys):
    run, printed = trained
    assert main([*command_after("to evaluate", printed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 12

    generate = command_after("to generate", printed)
    assert main([*generate, "--max-new-tokens", "20", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("...")
    assert "tokens at" in err

    resume = [word.replace("MORE", "14") for word in command_after("to continue", printed)]
    assert resume[-2:] == ["train.steps=14", "run.accept_changes=[schedule]"]
    assert main(resume) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 14
    assert steps == sorted(steps)

    picture = tmp_path / "loss.png"
    assert main(["plot", str(run), "--out", str(picture)]) == 0
    assert picture.stat().st_size > 1000
