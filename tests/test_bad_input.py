"""Bad input of every command: one message, exit code 2, no traceback, and nothing is written."""

import gzip
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.cli import main
from tests.checkpoint.interop.models import CONFIG, write_model

GOOD = """\
model:
  d_model: 16
  num_layers: 1
  mixer: {kind: attention, num_heads: 2}
  ffn: {kind: swiglu, d_hidden: 24}
data: {source: "text:text.txt", sequence_length: 16}
train: {steps: 2, batch_size: 4}
"""
ARENA = """\
baseline: a
learning_rates: [1e-3]
dir: arena
base:
  model:
    {d_model: 16, num_layers: 1, mixer: {kind: attention, num_heads: 2},
     ffn: {kind: swiglu, d_hidden: 24}}
contestants: {a: {}, b: {model: {mixer: {num_heads: 4}}}}
tasks: {t: {keys: {data: {source: "text:text.txt", sequence_length: 16}, train: {steps: 2}}}}
"""
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 30)
)

Content = str | bytes | Callable[[Path], object] | None
Files = dict[str, Content]


def folder(path: Path) -> None:
    path.mkdir()


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # the working directory's: a socket's path may not be long


def model(**changes: object) -> Callable[[Path], object]:
    """A folder in Hugging Face's layout, with other options."""

    def write(path: Path) -> None:
        write_model(path)
        (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))

    return write


C: Files = {"c.yaml": GOOD}
M: Files = {"m": model()}
A: Files = {"a.yaml": ARENA}
TRAIN, PREPARE = "train c.yaml run.dir=new", "data prepare c.yaml data.cache_dir=cache"
GENERATE, PLOT = "generate run --prompt a", "plot run --out a.png"
STEP = "run/checkpoints/0"
LONG = "a" * 300
DIGITS = "9" * 5000

# What is prepared, the command, and what its message must say. `run` is a run where it is named.
CASES: dict[str, tuple[Files, str, str]] = {
    # Paths of configurations
    "a folder named c.yaml": ({"c.yaml": folder}, TRAIN, "c.yaml is a folder; name a file"),
    "a pipe as configuration": (
        {"c.yaml": os.mkfifo},
        TRAIN,
        "c.yaml is a named pipe; give a file",
    ),
    "a socket as configuration": ({"c.yaml": listening}, TRAIN, "c.yaml is a socket; give a file"),
    "a device as configuration": ({}, "train /dev/zero", "/dev/zero is a device; give a file"),
    "a link that leads nowhere": ({"c.yaml": link_to_nothing}, TRAIN, "c.yaml does not exist."),
    "a link to itself": ({"c.yaml": link_to_itself}, TRAIN, "Too many levels of symbolic links"),
    "a file in a file": (C, "train c.yaml/d.yaml", "'c.yaml/d.yaml' cannot be read: Not a dir"),
    "a name that is too long": ({}, f"train {LONG}.yaml", "cannot be read: File name too long"),
    "a NUL byte in a path": ({}, "train a\0b.yaml", r"'a\x00b.yaml' cannot be read: embedded null"),
    # What is in a configuration
    "an empty file": ({"c.yaml": ""}, TRAIN, "c.yaml is empty; allowed: sections such as 'model:'"),
    "a list": ({"c.yaml": "- a"}, TRAIN, "c.yaml is a list; allowed: sections such as 'model:'"),
    "gzip": ({"c.yaml": gzip.compress(b"a")}, TRAIN, "c.yaml is compressed by gzip; unpack it"),
    "UTF-16": (
        {"c.yaml": GOOD.encode("utf-16")},
        TRAIN,
        "c.yaml is UTF-16, by its byte order mark",
    ),
    "an image": ({"c.yaml": b"\x89PNG\r\n\x1a\n\0"}, TRAIN, "yaml is a PNG image, not UTF-8 text"),
    "NUL bytes": ({"c.yaml": bytes(9)}, TRAIN, "line 1, column 1: YAML does not allow the char"),
    "aliases that explode": ({"c.yaml": BOMB}, TRAIN, "a29: unknown key. Allowed: "),
    "an alias inside of its anchor": ({"c.yaml": "model: &m {a: *m}"}, TRAIN, "recursive"),
    "an anchor twice": ({"c.yaml": "a: &m {}\nb: &m {}"}, TRAIN, "found duplicate anchor 'm'"),
    "a tab": ({"c.yaml": "model:\n\td_model: 1"}, TRAIN, "line 2, column 1: found character '\\t'"),
    "a merge key": ({"c.yaml": "model: {<<: {}}"}, TRAIN, "model.<<: unknown key."),
    "two documents": ({"c.yaml": "a: 1\n---\nb: 1"}, TRAIN, "but found another document"),
    "deep nesting": ({"c.yaml": "[" * 2000}, TRAIN, "lists and sections are nested too deeply"),
    "an underscore in a number": (
        C,
        f"{TRAIN} train.steps=1_000",
        "Write 1000: numbers are decimal and have no und",
    ),
    "a number in octal": (
        C,
        f"{TRAIN} train.steps=0o17",
        "train.steps is '0o17'; allowed: a whole",
    ),
    "an exponent that is infinite": (C, f"{TRAIN} eval.every=1e999", "It must be finite."),
    "an integer of 5,000 digits": (
        C,
        f"{TRAIN} train.steps={DIGITS}",
        "an integer of 5,000 digits",
    ),
    "more steps than 32 bits": (C, f"{TRAIN} train.steps={2**32}", "up to 4,294,967,295 (given"),
    "a seed beyond 32 bits": (
        C,
        f"{TRAIN} train.seed={2**32}",
        "train.seed: 4294967296 is too lar",
    ),
    "a batch of 10^18": (C, f"{TRAIN} train.batch_size={10**18}", "and of at most 16,777,216."),
    "10^9 layers": (C, f"{TRAIN} model.num_layers={10**9}", "and of at most 10,000."),
    "a width of 10^12": (C, f"{TRAIN} model.d_model={10**12}", "and of at most 16,777,216."),
    "no vocabulary": (C, f"{TRAIN} model.vocab_size=0", "model.vocab_size is 0; allowed: a whole"),
    "rows of one token": (C, f"{TRAIN} data.sequence_length=1", "a whole number of at least 2."),
    "10^18 batches ahead": (C, f"{TRAIN} data.prefetch={10**18}", "and of at most 1,024."),
    "an override twice": (C, f"{TRAIN} train.steps=1 train.steps=0", "(given as train.steps=0)"),
    "a section as a number": (C, f"{TRAIN} model=5", "model is 5; allowed: a section with"),
    "a key in a number": (C, f"{TRAIN} train.steps.more=1", "train.steps is 2, which has no key"),
    "a place beyond a list": (
        C,
        f"{TRAIN} model.pattern=[{{}}] model.pattern.{DIGITS}.mixer=1",
        "model.pattern is a list of 1, its items are 0 to 0",
    ),
    # Places to write to
    "a run in a file": ({**C, "new": "x"}, TRAIN, "cannot be written: new is a file"),
    "a run in a name that is too long": (C, f"train c.yaml run.dir={LONG}", "File name too long"),
    "a NUL byte in a folder's name": (C, f'{PREPARE} data.cache_dir="a\\0b"', "has a NUL byte"),
    "a cache in a file": ({**C, "x": ""}, f"{PREPARE} data.cache_dir=x/y", "cannot be written"),
    "a tokenizer in a file": (
        {**C, "x": ""},
        "data train-tokenizer c.yaml --vocab-size 300 --out x",
        "x is a file; choose another place",
    ),
    "a tokenizer beyond 32 bits": (
        C,
        f"data train-tokenizer c.yaml --vocab-size {2**32} --out t",
        "vocab_size 4294967296 is too large",
    ),
    # Sources and tokenizers
    "a source in a device": (C, f"{PREPARE} data.source=text:/dev/zero", "is a device; name files"),
    "a source that is a link to itself": (
        {**C, "l": link_to_itself},
        f"{PREPARE} data.source=text:l",
        "l is a link that leads to no file",
    ),
    "a source whose name is too long": (
        C,
        f"{PREPARE} data.source=text:{LONG}",
        "cannot be looked for: File name too long",
    ),
    "JSON that is no tokenizer": (
        {**C, "t/tokenizer.json": "{}"},
        f"{PREPARE} data.tokenizer=t",
        "data.tokenizer 't': not a tokenizer.json: ",
    ),
    "a tokenizer_config.json of a list": (
        {**C, **M, "m/tokenizer_config.json": "[1]"},
        f"{PREPARE} data.tokenizer=m",
        "tokenizer_config.json is not a JSON object",
    ),
    "a tokenizer_config.json that is deep": (
        {**C, **M, "m/tokenizer_config.json": "[" * 99999},
        f"{PREPARE} data.tokenizer=m",
        "tokenizer_config.json is not JSON: it is nested too deeply",
    ),
    # Runs
    "a file as run": ({"x": ""}, "generate x --prompt a", "x is no run; give a run directory"),
    "a configuration cut short": (
        {"run/config.yaml": "model: {d_mod"},
        GENERATE,
        "config.yaml, lin",
    ),
    "checkpoints that are a file": ({"run/checkpoints": ""}, GENERATE, "has no folder checkpoints"),
    "a step that is a file": (
        {"run/checkpoints/13": ""},
        "eval run/checkpoints/13",
        "13 is no folder, as a checkpoint is; look into run/checkpoints",
    ),
    "a manifest cut short": (
        {f"{STEP}/manifest.json": '{"a": '},
        f"checkpoint inspect {STEP}",
        "is damaged: manifest.json: expected JSON, found something else",
    ),
    "a manifest that is deep": (
        {f"{STEP}/manifest.json": "[" * 99999},
        f"eval {STEP}",
        "is damaged: manifest.json: expected JSON, found something else",
    ),
    "a manifest that is a folder": (
        {f"{STEP}/manifest.json": folder},
        f"eval {STEP}",
        "is damaged: manifest.json: expected a file, found a folder",
    ),
    "a manifest that is a pipe": (
        {f"{STEP}/manifest.json": os.mkfifo},
        f"eval {STEP}",
        "is damaged: manifest.json: expected a file, found a named pipe",
    ),
    "a step to remove that is a path": (
        {},
        "checkpoint rm run ../../run",
        "has no step '../../run'",
    ),
    "a difference from a file": ({"x": ""}, "checkpoint diff run x", "x is no run; give a run dir"),
    # Options
    "no new tokens": (
        {},
        f"{GENERATE} --max-new-tokens 0",
        "0 is out of range; allowed: 1 to 4,294",
    ),
    "5,000 digits of tokens": (
        {},
        f"{GENERATE} --max-new-tokens {DIGITS}",
        "invalid int value: '999",
    ),
    "a seed below 0": ({}, f"{GENERATE} --seed -1", "--seed: -1 is out of range; allowed: 0 to"),
    "a share that is no number": (
        {},
        f"{GENERATE} --top-p nan",
        "top_p is nan; allowed: more than 0",
    ),
    "an infinite temperature": (
        {},
        f"{GENERATE} --temperature inf",
        "temperature is inf; allowed: 0",
    ),
    "no processes": (
        {},
        "eval run --coordinator h:1 --processes 0 --process 0",
        "--processes is 0;",
    ),
    "a time-out that is no number": (
        {},
        "eval run --peer-timeout nan",
        "--peer-timeout is nan; all",
    ),
    "a folder of tasks that is a file": (
        {"x": ""},
        "eval run --suite lm_eval:a --tasks-dir x",
        "tasks folder x does not exist; give a folder of task YAMLs",
    ),
    # Plots
    "metrics that are damaged": (
        {"run/metrics.jsonl": '{"step": 1}\nxx\n{"step": 2}\n'},
        PLOT,
        "metrics.jsonl, line 2 is not JSON: Expecting value at character 0; fix or remove",
    ),
    "metrics of words": (
        {"run/metrics.jsonl": '{"step": 1, "loss": "a"}\n'},
        PLOT,
        "loss is not a num",
    ),
    "metrics cut after half a line": ({"run/metrics.jsonl": '{"st'}, PLOT, "has no losses yet"),
    "a plot in place of a folder": (
        {"run/metrics.jsonl": '{"step": 1, "loss": 1.0}\n', "a.png": folder},
        PLOT,
        "a.png is a folder; name a file in it, such as a.png/loss.png",
    ),
    # Import and export
    "a config.json of a list": ({**M, "m/config.json": "[]"}, "import m new", "not a JSON object"),
    "a model_type of a list": (
        {"m": model(model_type=["a"])},
        "import m new",
        "has model_type ['a']",
    ),
    "a rope_scaling of a word": (
        {"m": model(rope_scaling="linear")},
        "import m new",
        "config.json has rope_scaling 'linear'; allowed: keys with values",
    ),
    "10^9 imported layers": (
        {"m": model(num_hidden_layers=10**9)},
        "import m new",
        "num_hidden_layers 1000000000; allowed: a positive whole number up to 10000",
    ),
    "weights of no bytes": ({**M, "m/model.safetensors": ""}, "import m new", "fetch it again"),
    "an import into a file": (
        {**M, "x": ""},
        "import m x/new",
        "x is a file; give another folder",
    ),
    "an export into a file": ({"x": ""}, "export run x/new", "x is a file; give another folder"),
    # Arenas, plans and lists
    "a contestant twice": (
        {"a.yaml": ARENA.replace("b: {model", "a: {model")},
        "arena a.yaml --dry-run",
        "key 'a' is given twice, first in line 8; keep one",
    ),
    "a baseline that is nobody": (
        {"a.yaml": ARENA.replace("baseline: a", "baseline: z")},
        "arena a.yaml --dry-run",
        "baseline 'z' is not a contestant; allowed: a, b.",
    ),
    "a contestant that is a path": (
        {"a.yaml": ARENA.replace("b: {model", '"../b": {model')},
        "arena a.yaml --dry-run",
        "'../b' names a folder; allowed: letters, digits",
    ),
    "no workers": (A, "arena a.yaml --workers 0", "--workers: 0 is out of range; allowed: 1 to"),
    "an arena's file that is damaged": (
        {**A, "arena/arena.json": '{"arena": {'},
        "arena a.yaml --dry-run",
        "arena/arena.json is not JSON: ",
    ),
    "an arena's file that is another": (
        {**A, "arena/arena.json": "{}"},
        "arena a.yaml --dry-run",
        "arena/arena.json is not what an arena keeps there; give another dir",
    ),
    "a topology of nothing": (C, "plan c.yaml --topology v5p--8", "'v5p--8', which is not offered"),
    "a schema in a folder": ({"s": folder}, "schema --check s", "s is a folder; name a file"),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing had to be compiled for."""
    place = tmp_path_factory.mktemp("imported")
    import_model(HuggingFaceFolder(write_model(place / "model")), place / "run")
    return place / "run"


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_message_and_nothing_is_written(
    name: str, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    files, command, message = CASES[name]
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some words " * 100)
    if "run" in command.replace("/", " ").split():
        shutil.copytree(imported, "run")
    for place, content in files.items():
        put(Path(place), content)
    before = everything(tmp_path)
    assert main(command.split(" ")) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err and "bug" not in err.replace("debug", "")
    assert len(err) < 4000
    assert out == ""
    assert everything(tmp_path) == before


def put(path: Path, content: Content) -> None:
    """What a case wants to lie there, in place of what does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def everything(place: Path) -> set[str]:
    return {str(path) for path in place.rglob("*")}
