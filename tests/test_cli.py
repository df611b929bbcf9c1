import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jaxformer.cli import _parse, main
from jaxformer.evaluate.suites import SUITES

REPOSITORY = Path(__file__).parents[1]
MODEL = """\
model:
  d_model: 64
  num_layers: 2
  mixer: {kind: attention, num_heads: 4}
  ffn: {kind: swiglu, d_hidden: 128}
"""

# What a user may write below the model's section, and what the message must say.
BAD_CONFIGURATIONS = {
    "unknown key": ("train: {stpes: 10}", "train.stpes: unknown key. Allowed: accumulation, "),
    "unknown key, nearest": ("train: {stpes: 10}", "Did you mean 'steps'? (line 6)"),
    "wrong type": ("train: {steps: many}", "train.steps is 'many'; allowed: a whole number"),
    "malformed YAML": ("train: {steps: 10", "c.yaml, line 7, column 1: expected ',' or '}'"),
    "a key twice": (
        "run: {dir: a, dir: b}",
        "c.yaml, line 6, column 15: key 'dir' is given twice, first in line 6; keep one",
    ),
    "a rate as text": (
        'optimizer: {kind: adamw, learning_rate: "1e-4"}',
        "optimizer.learning_rate is '1e-4'; allowed: a number above 0. It is text, because of its "
        "quotes: write 1e-4 without them.",
    ),
    "a rate that is NaN": (
        "optimizer: {kind: adamw, learning_rate: .nan}",
        "optimizer.learning_rate is nan; allowed: a number above 0. It must be finite.",
    ),
    "an infinite rate": (
        "optimizer: {kind: adamw, weight_decay: .inf}",
        "optimizer.weight_decay is inf; allowed: a number of at least 0. It must be finite.",
    ),
    "a negative rate": (
        "optimizer: {kind: adamw, learning_rate: -1e-3}",
        "optimizer.learning_rate is -0.001; allowed: a number above 0.",
    ),
    "warm-up longer than the run": (
        "train: {steps: 10}\noptimizer: {kind: adamw, schedule: {warmup_steps: 20}}",
        "optimizer.schedule.warmup_steps is 20, longer than the run: train.steps is 10",
    ),
    "no steps": ("train: {steps: 0}", "train.steps is 0; allowed: a whole number above 0."),
    "negative steps": ("train: {steps: -5}", "train.steps is -5; allowed: a whole number above 0."),
    "two open axes": ("mesh: {data: -1, fsdp: -1}", "mesh: axes data and fsdp are both -1;"),
    "unknown axis": (
        "mesh: {modle: 2}",
        "mesh.modle: unknown key. Allowed: context, data, expert, fsdp, preset, rules,",
    ),
    "experts in a mesh for a model without": (
        "mesh: {expert: 2}",
        "mesh.expert is 2, but the model has no experts; use mesh.data or mesh.fsdp",
    ),
    "an open axis for experts": (
        "mesh: {expert: -1}",
        "mesh.expert is -1, but the model has no experts; use mesh.data or mesh.fsdp",
    ),
    "how often suites are measured, without any": (
        "eval: {suites_every: 10}",
        "eval: suites_every is 10, but there are no suites; give eval.suites",
    ),
    "a column of files without columns": (
        "data: {source: 'text:a.txt', column: body}",
        "data: column is body, but no source has columns; leave it out, or give one of "
        "jsonl:GLOB, ",
    ),
    "a column of one source without columns": (
        "data: {source: [{source: 'text:a.txt', column: body}, {source: 'jsonl:b.jsonl'}]}",
        "data: source 'text:a.txt' has no columns, but its column is body; leave it out",
    ),
    "unknown precision": (
        "train: {precision: bfloat61}",
        "train.precision is 'bfloat61'; allowed: float32 or bfloat16. Did you mean 'bfloat16'?",
    ),
    "unknown optimizer": (
        "optimizer: {kind: adamq}",
        "optimizer.kind is 'adamq'; allowed: adamw, lion, adafactor, muon or sgd. "
        "Did you mean 'adamw'?",
    ),
    "unsafe run name": ("run: {dir: ../there}", "run.dir: '../there' is not a safe run directory"),
    "batch not divisible by accumulation": (
        "train: {batch_size: 10, accumulation: 4}",
        "train: batch_size 10 is not divisible by accumulation 4",
    ),
}

BAD_MODELS = {
    "unknown mixer": (
        "model.mixer.kind=atention",
        "model.mixer.kind is 'atention'; allowed: attention",
    ),
    "unknown mixer, nearest": ("model.mixer.kind=atention", "Did you mean 'attention'?"),
    "width not divisible by heads": (
        "model.mixer.num_heads=5",
        "model: d_model 64 is not divisible by num_heads 5; change one, or give head_dim",
    ),
    "heads not divisible by KV heads": (
        "model.mixer.num_kv_heads=3",
        "model: num_heads 4 is not divisible by num_kv_heads 3; allowed: a divisor of num_heads",
    ),
    "odd RoPE size": (
        "model.mixer.head_dim=15",
        "model: RoPE rotates pairs, but head_dim 15 × fraction 1.0 is 15",
    ),
    "rows longer than the position table": (
        "model.positions={kind: learned, max_length: 32}",
        "data.sequence_length is 256, but model.positions has max_length 32",
    ),
    "learned positions of one layer": (
        "model.pattern=[{}, {positions: {kind: learned, max_length: 512}}]",
        "model: pattern entry 1 has positions learned, which are added to the embeddings, below "
        "all layers; give model.positions. Allowed in an entry: rope, axial_rope, alibi, none",
    ),
    "sinusoidal positions of one layer": (
        "model.pattern=[{positions: {kind: sinusoidal}}]",
        "model: pattern entry 0 has positions sinusoidal, which are added to the embeddings",
    ),
    "positions of a layer that has no use for them": (
        "model.pattern=[{}, {mixer: {kind: mamba}, positions: {kind: rope}}]",
        "model: pattern entry 1 has positions rope, which its mixer mamba does not use; leave",
    ),
    "ALiBi in a model that has no use for it": (
        "model={d_model: 64, num_layers: 2, ffn: null, positions: {kind: alibi}, "
        "mixer: {kind: retention, num_heads: 4}}",
        "model: positions are alibi, which no layer uses (mixers: retention); give another kind",
    ),
    "rows longer than one layer's positions are meant for": (
        "model.pattern=[{}, {positions: {kind: rope, max_length: 32}}]",
        "data.sequence_length is 256, but model.positions has max_length 32",
    ),
    "the epsilon of a norm that is not there": (
        "model.mixer.qk_norm_eps=1.0e-5",
        "model: qk_norm_eps 1e-05 without qk_norm: nothing is normalised; give qk_norm: true",
    ),
    "pattern longer than the model": (
        "model.pattern=[{}, {}, {}]",
        "model: pattern has 3 entries for num_layers 2",
    ),
}


def fails(capsys, *argv: str) -> str:
    """Run a command that must refuse its input; the message."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err.removeprefix("error: ")


@pytest.mark.parametrize("name", BAD_CONFIGURATIONS)
def test_a_bad_configuration_is_refused_by_name(name, tmp_path, capsys):
    text, message = BAD_CONFIGURATIONS[name]
    file = tmp_path / "c.yaml"
    file.write_text(f"{MODEL}{text}\n")
    assert message in fails(capsys, "train", str(file))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_refused_by_name(name, tmp_path, capsys):
    override, message = BAD_MODELS[name]
    file = tmp_path / "c.yaml"
    file.write_text(MODEL)
    assert message in fails(capsys, "train", str(file), override)


def test_a_missing_file_names_the_nearest(capsys):
    folder = REPOSITORY / "configs" / "models"
    assert fails(capsys, "train", str(folder / "gpt2_124m.yaml")) == (
        f"{folder / 'gpt2_124m.yaml'} does not exist. Did you mean {folder / 'gpt2-124m.yaml'}?\n"
    )


@pytest.mark.parametrize("command", [["eval"], ["generate", "--prompt", "a"]], ids=" ".join)
def test_a_missing_run_says_what_a_run_is(command, tmp_path, capsys):
    message = fails(capsys, *command, str(tmp_path / "no"))
    assert message == (
        f"{tmp_path / 'no'} does not exist; give a run directory (with a config.yaml), or "
        f"RUN/checkpoints/STEP\n"
    )


def test_the_traceback_is_there_with_debug(tmp_path, capsys):
    assert main(["train", str(tmp_path / "c.yaml"), "--debug"]) == 2
    err = capsys.readouterr().err
    assert "FileNotFoundError" in err
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'c.yaml'} does not exist.")


def test_overrides_may_stand_before_and_after_options():
    arguments = _parse(["eval", "runs/a", "train.seed=1", "--json", "eval.batches=null", "--debug"])
    assert arguments.overrides == ["train.seed=1", "eval.batches=null"]
    assert arguments.json
    assert arguments.debug


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "'trian' is unknown; allowed: train, plan, profile, "),
        (["trian"], "Did you mean 'train'?"),
        (["train", "c.yaml", "--debgu"], "unknown argument '--debgu'. Did you mean '--debug'?"),
        (["list", "mixer"], "allowed: mixers, "),
        (["list", "mixers", "a=b"], "unknown argument 'a=b'"),
        (["generate", "run", "--prompt", "a", "--seed", "x"], "--seed: invalid int value: 'x'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_wrong_command_line_says_what_is_allowed(argv, message, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "usage: jaxformer" in err


COMMANDS = [
    ["train"],
    ["eval"],
    ["generate"],
    ["data"],
    ["data", "prepare"],
    ["data", "inspect"],
    ["data", "train-tokenizer"],
    ["list"],
    ["plot"],
    ["schema"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example_that_parses(command, capsys):
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    example = out.split("example:\n")[1].strip()
    name, *argv = shlex.split(example.partition(" > ")[0])
    assert name == "jaxformer"
    assert argv[: len(command)] == command
    assert _parse(argv).handler


def test_the_help_of_eval_names_every_suite(capsys):
    assert main(["eval", "--help"]) == 0
    out = capsys.readouterr().out
    assert [name for name in SUITES if name not in out] == []


def test_lists_name_every_choice(capsys):
    assert main(["list", "mixers"]) == 0
    mixers = capsys.readouterr().out
    assert "attention\n    Softmax attention" in mixers
    assert "num_heads=8" in mixers
    assert main(["list", "optimizers"]) == 0
    optimizers = capsys.readouterr().out
    assert [line for line in optimizers.splitlines() if not line.startswith(" ")] == [
        "adamw",
        "lion",
        "adafactor",
        "muon",
        "sgd",
    ]
    assert main(["list", "configs"]) == 0
    assert "GPT-2 small: 124,439,808 parameters." in capsys.readouterr().out


def test_the_schema_is_printed_and_checked(tmp_path, capsys):
    assert main(["schema"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["additionalProperties"] is False
    file = tmp_path / "schema.json"
    file.write_text(text)
    assert main(["schema", "--check", str(file)]) == 0
    file.write_text(text.replace("1000", "1001"))
    assert main(["schema", "--check", str(file)]) == 1
    assert f"run: jaxformer schema > {file}" in capsys.readouterr().err


HEAVY = {"datasets", "grain", "orbax", "tensorstore", "transformers", "torch", "pandas", "pyarrow"}


@pytest.mark.parametrize(
    ("argv", "forbidden"),
    [
        (["-c", "import jaxformer"], HEAVY | {"jax", "numpy", "pydantic"}),
        (["train.py", "--help"], HEAVY | {"jax", "numpy"}),
        (["eval.py", "--help"], HEAVY | {"jax", "numpy"}),
        (["train.py", "configs/quickstart.yaml", "train.stpes=1"], HEAVY),
    ],
    ids=["import", "train --help", "eval --help", "a bad configuration"],
)
def test_starting_imports_nothing_heavy(argv, forbidden):
    """Seconds depend on the machine; the packages that cost them do not."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *argv], cwd=REPOSITORY, capture_output=True, text=True
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in process.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert process.returncode == (2 if "train.stpes=1" in argv else 0), process.stderr[-2000:]
    assert "jaxformer" in imported
    assert not imported & forbidden
