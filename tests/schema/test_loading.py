import textwrap
from pathlib import Path

import pytest

from jaxformer.config.loading import load_config
from jaxformer.errors import UserError

MODEL = """\
model:
  d_model: 64
  num_layers: 2
  mixer: {kind: attention, num_heads: 4}
  ffn: {kind: swiglu, d_hidden: 128}
"""


@pytest.fixture
def configuration(tmp_path):
    def write(text: str = "", model: str = MODEL) -> Path:
        file = tmp_path / "c.yaml"
        file.write_text(model + textwrap.dedent(text))
        return file

    return write


def mistakes(file, *overrides) -> list[str]:
    """The lines of the message, without the file's name."""
    with pytest.raises(UserError) as caught:
        load_config(file, overrides)
    message = str(caught.value)
    if "\n" not in message:
        return [message.removeprefix(f"{file}: ")]
    first, *lines = message.split("\n  ")
    assert first == f"{file} has {len(lines)} mistakes:"
    return lines


def test_a_file_and_its_overrides_become_a_configuration(configuration):
    file = configuration("train: {steps: 20}\noptimizer: {kind: adamw, learning_rate: 1e-4}\n")
    config = load_config(file, ["train.steps=30", "model.pattern=[{}, {}]"])
    assert config.model.d_model == 64
    assert config.train.steps == 30
    assert config.optimizer.learning_rate == 1e-4
    assert len(config.model.pattern) == 2


def test_an_override_of_kind_keeps_what_the_new_kind_has_too(configuration):
    file = configuration("optimizer: {kind: adamw, learning_rate: 1e-4, b1: 0.8}\n")
    optimizer = load_config(file, ["optimizer.kind=lion"]).optimizer
    assert (optimizer.kind, optimizer.learning_rate, optimizer.b1) == ("lion", 1e-4, 0.8)


def test_an_override_of_kind_names_the_keys_that_the_new_kind_lacks(configuration):
    file = configuration("optimizer: {kind: adamw, eps: 1e-6}\n")
    assert mistakes(file, "optimizer.kind=lion") == [
        "optimizer.eps: unknown key. Allowed for kind lion: b1, b2, clip_norm, kind, "
        "learning_rate, schedule, weight_decay. (line 6; optimizer.kind=lion keeps the section's "
        "other keys, optimizer={kind: lion} starts it afresh)"
    ]
    assert load_config(file, ["optimizer={kind: lion}"]).optimizer.kind == "lion"


def test_the_former_key_of_the_attention_kernel_is_read_but_not_beside_the_present_one(
    configuration,
):
    config = load_config(configuration("train: {attention_kernel: xla}\n"))
    assert config.train.kernels.attention == "xla"
    (line,) = mistakes(configuration("train: {attention_kernel: xla, kernels: {}}\n"))
    assert line.startswith("train: attention_kernel is kernels.attention now; give only that one")


def test_every_mistake_has_a_line_with_its_place(configuration):
    file = configuration("train:\n  stpes: 3\n  seed: -1\nmesh: {data: two}\n")
    assert mistakes(file, "eval.every=0") == [
        "train.seed is -1; allowed: a whole number of at least 0. (line 8)",
        "train.stpes: unknown key. Allowed: accumulation, batch_size, ema_decay, freeze, kernels, "
        "layer_statistics, log_every, max_nonfinite_steps, objective, pipeline_micro_batches, "
        "precision, profile, remat, seed, steps, unroll_layers, z_loss. Did you mean 'steps'? "
        "(line 7)",
        "eval.every is 0; allowed: a whole number above 0. (given as eval.every=0)",
        "mesh.data is 'two'; allowed: a whole number or null. (line 9)",
    ]


def test_an_override_through_an_unknown_section_is_named(configuration):
    (line,) = mistakes(configuration(), "trian.steps=3")
    assert line.startswith("trian: unknown key. Allowed: checkpoint, data, ")
    assert line.endswith("Did you mean 'train'? (given as trian.steps=3)")


def test_a_number_in_quotes_is_told_to_drop_them(configuration):
    file = configuration('optimizer: {kind: adamw, learning_rate: "1e-4"}\n')
    assert mistakes(file) == [
        "optimizer.learning_rate is '1e-4'; allowed: a number above 0. It is text, because of its "
        "quotes: write 1e-4 without them. (line 6)"
    ]


def test_the_wrong_kind_of_value_is_told_what_to_write(configuration):
    file = configuration("train: {steps: 1e3}\nrun: {dir: 7}\nmesh: 8\neval: [1]\n")
    assert mistakes(file) == [
        "train.steps is 1000.0; allowed: a whole number above 0. Write 1000. (line 6)",
        "eval is a list; allowed: a section with the keys every, batches, batch_size, suites, "
        "suites_every, suites_limit, tasks_dir, sample_tokens. (line 9)",
        "mesh is 8; allowed: a section with the keys preset, data, stage, fsdp, expert, tensor, "
        "context, rules. (line 8)",
        'run.dir is 7; allowed: text. To mean text, put it in quotes: "7". (line 7)',
    ]


def test_an_item_of_a_list_is_named_by_its_index(configuration):
    file = configuration("data:\n  source:\n    - source: builtin:python\n      weigth: 2\n")
    assert mistakes(file) == [
        "data.source.0.weigth: unknown key. Allowed: column, format, source, weight. "
        "Did you mean 'weight'? (line 9)"
    ]


@pytest.mark.parametrize("key", ["model.pattern", "data.source"])
def test_an_empty_list_is_told_how_long_it_must_be(key, configuration):
    assert mistakes(configuration(), f"{key}=[]") == [
        f"{key} is a list of 0; allowed: 1 or more (given as {key}=[])"
    ]


def test_a_missing_key_and_a_missing_kind_say_what_is_allowed(configuration):
    file = configuration("optimizer: {b1: 0.9}\n", model="model: {d_model: 64, num_layers: 2}\n")
    lines = mistakes(file)
    assert lines[0].startswith("model.mixer is missing; allowed: a section ")
    assert lines[1].startswith("model.ffn is missing; allowed: a section ")
    assert lines[2] == "optimizer.kind is missing; allowed: adamw, lion, adafactor, muon or sgd"


@pytest.mark.parametrize(
    ("text", "found"), [("", "empty"), ("- 1\n", "a list"), ("model\n", "'model'")]
)
def test_a_file_without_sections_says_what_it_is(configuration, text, found):
    file = configuration(text, model="")
    assert mistakes(file) == [f"{file} is {found}; allowed: sections such as 'model:' and 'data:'"]


def test_a_missing_file_names_the_nearest(configuration):
    file = configuration()
    wrong = file.with_name("cc.yaml")
    with pytest.raises(UserError, match=f"^{wrong} does not exist. Did you mean {file}\\?$"):
        load_config(wrong)
    with pytest.raises(UserError, match=f"Neither does the folder {file.parent / 'no'}.$"):
        load_config(file.parent / "no" / "c.yaml")
    with pytest.raises(UserError, match=r"is a folder; name a file \(YAML files in it: c.yaml\)$"):
        load_config(file.parent)


def test_a_file_that_is_not_utf_8_names_the_byte(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(b"model: \xff\n")
    with pytest.raises(UserError, match="c.yaml is not UTF-8: byte 7 is 0xff$"):
        load_config(file)


def test_a_resolved_configuration_loads_as_itself(configuration):
    import yaml

    file = configuration("optimizer: {kind: muon}\ndata: {source: [{source: builtin:python}]}\n")
    config = load_config(file, ["model.positions={kind: rope, scaling: {kind: ntk, factor: 2.0}}"])
    resolved = file.with_name("resolved.yaml")
    resolved.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(resolved) == config


def test_a_mistake_in_a_section_that_may_be_left_out_has_its_own_key(configuration):
    file = configuration("init: {from: runs/base}\n")
    assert mistakes(file, "lora.targets=x") == [
        "lora.targets is 'x'; allowed: a list, each item text. (given as lora.targets=x)"
    ]


def test_the_key_from_is_from_in_files_overrides_messages_and_what_is_saved(configuration):
    config = load_config(configuration("init: {from: runs/a}\n"), ["init.from=runs/b"])
    assert config.model_dump(mode="json")["init"] == {
        "from": "runs/b",
        "partial": [],
        "state": "weights",
    }
    assert mistakes(configuration(), "init.form=runs/a") == [
        "init.form: unknown key. Allowed: from, partial, state. Did you mean 'from'? "
        "(given as init.form=runs/a)"
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.rank=2"], "lora needs a base to adapt: give init.from, a run or a checkpoint"),
        (["init.partial=[head]"], "init: partial is given, but from is not; name the run"),
        (["init.state=optimizer"], "init: state is optimizer, but from is not; name the run"),
        (
            ["init={from: a, partial: [head], state: optimizer}"],
            "init: state is optimizer, which takes moments for every trained parameter",
        ),
        (
            ["lora.rank=2", "init={from: a, state: optimizer}"],
            "init.state is optimizer, but lora trains new adapters",
        ),
        (
            ["lora.rank=2", "init={from: a, partial: [head]}"],
            "init.partial cannot be given with lora",
        ),
        (["lora.rank=2", "init.from=a", "train.freeze=[head]"], "train.freeze cannot be given"),
    ],
)
def test_sections_of_fine_tuning_that_do_not_go_together_are_refused(
    configuration, overrides, message
):
    (line,) = mistakes(configuration(), *overrides)
    assert message in line
