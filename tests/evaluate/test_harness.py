"""lm-evaluation-harness on a small random model, with tasks on files of the tests' own."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxformer.batch import Batch
from jaxformer.cli import main
from jaxformer.config import EvalConfig
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from jaxformer.evaluate.perplexity import evaluate, make_eval_step, validate
from jaxformer.evaluate.scoring import Continuation
from jaxformer.evaluate.suite import Options
from jaxformer.evaluate.suites import find_suite
from jaxformer.generate.sampling import Sampling
from jaxformer.parallel.rules import batch_sharding
from jaxformer.run import Run, load
from jaxformer.schema.yaml_reader import read_yaml
from jaxformer.train.run import train
from tests.data.tokenizer_kinds import write_kind
from tests.devices.test_processes import finish_all, start
from tests.evaluate.test_scoring import BOS, LENGTH, naive, small_run
from tests.generate.test_text import Parrot
from tests.runs import REPOSITORY, make_config
from tests.test_readme import blocks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: extra eval")

import datasets
import jax
from lm_eval.api.instance import Instance

from jaxformer.evaluate.harness_model import HarnessModel

TASKS = {
    "choice.yaml": """\
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 3}
""",
    "finish.yaml": """\
task: finish
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/finish.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{rest}}"
generation_kwargs: {until: ["STOP"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "texts.yaml": """\
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}, {metric: word_perplexity}]
""",
}


CHOICES = [
    {"question": "ab ", "choices": ["cd", "efg"], "answer": 1},
    {"question": "a question that is longer than a row", "choices": ["y", "z z"], "answer": 0},
    {"question": "x", "choices": ["no", "yes", "maybe"], "answer": 2},
]
TEXTS = ["one two three four five six seven eight, nine", "short", "a" * (2 * LENGTH)]


@pytest.fixture(scope="module")
def run() -> Run:
    return small_run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three tasks, and what the harness keeps of their data beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in TASKS.items():
        (folder / name).write_text(text.replace("FOLDER", str(folder)))
    write_lines(folder / "choice.jsonl", CHOICES)
    write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    write_lines(folder / "finish.jsonl", [{"text": "abc", "rest": "d"}, {"text": "x", "rest": ""}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


def no_check() -> None:
    """Nothing ends these evaluations."""


def write_lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, place) for place, each in enumerate(arguments)]


def ids(text: str) -> list[int]:
    return list(text.encode())


def test_a_trailing_space_of_the_context_belongs_to_the_continuation(run):
    pairs = [("ab ", "cd"), ("ab", " cd"), ("", "cd"), ("a" * 40, "b" * 3)]
    found = HarnessModel(run).loglikelihood(asked("loglikelihood", *pairs))
    assert found[0] == found[1]
    split = [("ab", " cd"), ("ab", " cd"), ("", "cd"), ("a" * 40, "b" * 3)]
    expected = [naive(run, Continuation([BOS, *ids(one)], ids(other))) for one, other in split]
    np.testing.assert_allclose(
        [log_prob for log_prob, _ in found], [each for each, _ in expected], atol=1e-4, rtol=0
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def windows(text: str) -> Batch:
    """Rows that predict each token once, and see the token before their first; the last row goes
    back to be a whole one, and predicts what is left."""
    tokens, rows = [BOS, *ids(text)], []
    last = len(tokens) - 1
    for first in range(0, last, LENGTH):
        begin = max(0, min(first, last - LENGTH))
        piece = np.array(tokens[begin : begin + LENGTH + 1])
        row = np.zeros((5, LENGTH), int)
        size = len(piece) - 1
        row[:4, :size] = [piece[:-1], piece[1:], np.arange(size), np.ones(size)]
        row[4, first - begin : size] = 1
        rows.append(row)
    inputs, targets, positions, segment_ids, mask = np.stack(rows, axis=1).astype(np.int32)
    return Batch(inputs, targets, positions, segment_ids, mask.astype(bool))


def test_a_rolling_log_likelihood_is_the_loss_of_an_evaluation_of_the_same_windows(run):
    found = HarnessModel(run).loglikelihood_rolling(
        asked("loglikelihood_rolling", *[(text,) for text in TEXTS])
    )
    step, sharding = jax.jit(make_eval_step(run.model)), batch_sharding(run.mesh)
    for log_prob, text in zip(found, TEXTS, strict=True):
        loss = evaluate(step, run.params, [windows(text)], bytes_per_token=1.0, sharding=sharding)
        assert loss.tokens == len(text)
        assert log_prob == pytest.approx(-loss.loss * loss.tokens, abs=1e-4)


def generated(model: HarnessModel, prompts: list[str], **kwargs: list) -> list[str]:
    """Twelve tokens after each prompt; `kwargs` are lists of a value for each."""
    each = [
        {"max_gen_toks": 12, **{name: values[place] for name, values in kwargs.items()}}
        for place in range(len(prompts))
    ]
    return model.generate_until(asked("generate_until", *zip(prompts, each, strict=True)))


def test_generation_is_the_greedy_one_cut_at_the_first_stop(run):
    prompts = ["abc", "x", "abc", "longer one", "z"]
    free = run.generate(prompts, max_new_tokens=12, temperature=0)
    model = HarnessModel(run)
    assert generated(model, prompts) == free
    stops = [text[3:5] for text in free]
    cut = [text[: text.index(stop)] for text, stop in zip(free, stops, strict=True)]
    assert generated(model, prompts, until=[["never", stop] for stop in stops]) == cut
    assert generated(model, prompts, until=stops) == cut
    assert any(cut)
    assert model.shortened == 0


def test_a_prompt_that_leaves_no_room_for_the_answer_loses_its_beginning(run):
    model = HarnessModel(run)
    long, end = "x" * 30 + "a much longer prompt", "onger prompt"
    pieces = run.decoder.decode([ids(end)], max_new_tokens=12, sampling=Sampling(temperature=0))
    row = np.concatenate(list(pieces), axis=1)[0]
    assert generated(model, [long]) == [run.tokenizer.decode(row)]
    assert model.shortened == 1


def test_the_first_space_of_a_generated_text_is_kept(run, tmp_path):
    tokenizer = load_tokenizer(write_kind("metaspace", tmp_path))
    other = replace(run, tokenizer=tokenizer)
    other.__dict__["decoder"] = Parrot(tokenizer, "yes no yes</s>", tokenizer.eos_id)
    model = HarnessModel(other)
    assert generated(model, ["yes no", "the cat"]) == [" yes no yes"] * 2
    assert generated(model, ["yes no"], until=[[" no"]]) == [" yes"]


def test_without_a_beginning_only_what_has_no_text_before_it_is_asked_after_one(run, tmp_path):
    tokenizer = load_tokenizer("bytes", add_bos=False)
    found = HarnessModel(replace(run, tokenizer=tokenizer)).loglikelihood(
        asked("loglikelihood", ("ab", "cd"), ("", "cd"), (" ", "cd"))
    )
    expected = [
        naive(run, each)
        for each in (
            Continuation(ids("ab"), ids("cd")),
            Continuation([BOS], ids("cd")),
            Continuation([BOS], ids(" cd")),
        )
    ]
    np.testing.assert_allclose(
        [log_prob for log_prob, _ in found], [each for each, _ in expected], atol=1e-4, rtol=0
    )


def test_a_draft_changes_no_answer(run):
    prompts = ["abc", "b", "cab abc"]
    plain = generated(HarnessModel(run), prompts)
    assert generated(HarnessModel(run, draft="ngram"), prompts) == plain
    with pytest.raises(UserError, match="draft 'self:9' is out of range"):
        HarnessModel(run, draft="self:9")


def test_sampling_follows_the_task_and_repeats_itself(run):
    model = HarnessModel(run)
    options = {"do_sample": [True] * 4, "temperature": [1.0] * 4}
    texts = generated(model, ["abc"] * 4, **options)
    assert texts == generated(model, ["abc"] * 4, **options)
    assert len(set(texts)) == 4


def test_tasks_give_the_metrics_of_a_naive_reckoning(run, folder):
    suite = find_suite("lm_eval:choice,texts,finish", Options(folder))
    results = suite(run, no_check)
    right = [
        np.argmax([log_prob_of(run, row["question"], choice) for choice in row["choices"]])
        == row["answer"]
        for row in CHOICES
    ]
    choice = results["lm_eval:choice"]
    assert choice.metrics["acc"] == pytest.approx(np.mean(right))
    assert choice.standard_errors["acc"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(3))
    assert choice.facts["samples"] == 3
    assert choice.facts["task_version"] == 3
    model = HarnessModel(run)
    total = sum(model.loglikelihood_rolling(asked("", *[(text,) for text in TEXTS])))
    per_byte = -total / sum(map(len, TEXTS))
    texts = results["lm_eval:texts"].metrics
    assert texts["byte_perplexity"] == pytest.approx(math.exp(per_byte), rel=1e-6)
    assert texts["bits_per_byte"] == pytest.approx(per_byte / math.log(2), rel=1e-6)
    assert results["lm_eval:finish"].metrics == {"exact_match": 0.0}


def log_prob_of(run: Run, question: str, choice: str) -> float:
    context = question.rstrip()
    continuation = question[len(context) :] + " " + choice
    return naive(run, Continuation([BOS, *ids(context)], ids(continuation)))[0]


def test_the_limit_is_how_many_samples_of_a_task_are_taken(run, folder):
    results = find_suite("lm_eval:choice", Options(folder, limit=2))(run, no_check)
    assert results["lm_eval:choice"].facts["samples"] == 2


def test_examples_before_a_question_are_the_same_every_time(run, folder):
    plain, solved = (find_suite("lm_eval:choice", Options(folder, None, n)) for n in (0, 1))
    first = solved(run, no_check)["lm_eval:choice"]
    assert first.facts["num_fewshot"] == 1
    assert (
        first.facts["shortened_requests"]
        > plain(run, no_check)["lm_eval:choice"].facts["shortened_requests"]
    )
    assert solved(run, no_check)["lm_eval:choice"] == first


def test_what_is_raised_between_batches_ends_the_evaluation(run, folder):
    def stop() -> None:
        raise KeyboardInterrupt

    for task in ("choice", "texts", "finish"):
        with pytest.raises(KeyboardInterrupt):
            find_suite(f"lm_eval:{task}", Options(folder))(run, stop)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert train(make_config(folder, train={"steps": 4})) == 0
    return folder / "run"


def test_several_suites_are_one_record(finished, folder, capsys):
    argv = ["--suite", "lm_eval:choice,finish", "--suite", "validation", "--tasks-dir", str(folder)]
    assert main(["eval", str(finished), *argv, "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["step"] == 4
    assert list(record["results"]) == ["lm_eval:choice", "lm_eval:finish", "validation"]
    assert set(record["results"]["lm_eval:choice"]) >= {"acc", "acc_stderr", "samples"}
    whole = load(finished, ["eval.batches=null"])
    assert record["results"]["validation"]["loss"] == validate(whole).loss
    assert len(record["config_sha256"]) == 64
    assert "jax" in record["versions"]

    assert main(["eval", str(finished), *argv]) == 0
    out = capsys.readouterr().out
    assert "exact_match" in out
    assert "perplexity" in out


def test_the_example_of_the_documentation_runs(finished, tmp_path, monkeypatch, capsys):
    text = (REPOSITORY / "docs" / "evaluation.md").read_text()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "capitals.yaml").write_text(blocks("yaml", text)[1])
    (tmp_path / "tasks" / "capitals.jsonl").write_text(blocks("json", text)[0])
    assert EvalConfig.model_validate(read_yaml(blocks("yaml", text)[0], "").data["eval"]).suites
    argv = shlex.split(blocks("bash", text)[1])
    assert argv[:2] == ["python", "eval.py"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    longer = ["data.sequence_length=64", "--json"]
    assert main(["eval", str(finished), *argv[3:], *longer]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = record["results"]["lm_eval:capitals"]
    assert {found["acc"], found["acc_norm"]} <= {0.0, 0.5, 1.0}
    assert (found["samples"], found["shortened_requests"]) == (2, 0)


def test_two_processes_give_what_one_does(finished, folder, capsys):
    argv = ["--suite", "lm_eval:choice,texts,finish", "--tasks-dir", str(folder), "--json"]
    codes, outputs = finish_all(start(finished, 2, *argv, script="eval.py"))
    assert codes == [0, 0], outputs
    assert outputs[1] == ""
    assert main(["eval", str(finished), *argv]) == 0
    two, one = (json.loads(text.splitlines()[-1]) for text in (outputs[0], capsys.readouterr().out))
    assert list(two["results"]) == list(one["results"])
    for task, values in one["results"].items():
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        assert {name: two["results"][task][name] for name in numbers} == pytest.approx(numbers)


BAD = {
    "unknown suite": (["lm_evl:choice"], "suite 'lm_evl:choice' is unknown; allowed: validation"),
    "unknown suite, nearest": (["lm_evl:choice"], "Did you mean 'lm_eval'?"),
    "no task": (["lm_eval"], "suite 'lm_eval' has no tasks; give some: lm_eval:hellaswag,arc_easy"),
    "limit": (["lm_eval:choice", "--limit", "0"], "--limit is 0; allowed: 1 or more samples"),
    "few shots": (["lm_eval:choice", "--num-fewshot", "-1"], "--num-fewshot is -1; allowed: 0"),
    "validation of something": (["validation:x"], "validation takes nothing after its name"),
    "options that nothing takes": (
        ["validation", "--limit", "3"],
        "--limit is an option of the suite lm_eval",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_suite_is_refused_by_name(name, finished, capsys):
    argv, message = BAD[name]
    assert main(["eval", str(finished), "--suite", *argv]) == 2
    assert message in capsys.readouterr().err


def test_options_without_a_suite_are_refused(finished, capsys):
    assert main(["eval", str(finished), "--num-fewshot", "2"]) == 2
    assert "--num-fewshot is an option of the suite lm_eval" in capsys.readouterr().err


def test_an_unknown_task_names_the_nearest(folder):
    with pytest.raises(UserError, match="task 'choise' is not one of .* Did you mean 'choice'?"):
        find_suite("lm_eval:choise", Options(folder))


def test_without_the_harness_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("jaxformer.evaluate.harness.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxformer\[eval\]'"):
        find_suite("lm_eval:choice", Options())


def test_data_that_is_not_to_be_had_is_said_to_be(tmp_path):
    text = TASKS["choice.yaml"].replace("FOLDER", str(tmp_path / "no"))
    (tmp_path / "choice.yaml").write_text(text)
    with pytest.raises(UserError, match="the data of choice is unavailable: .*choice.jsonl"):
        find_suite("lm_eval:choice", Options(tmp_path))


def test_a_template_that_does_not_fit_its_data_is_said_to_be(tmp_path, folder):
    text = TASKS["choice.yaml"].replace("FOLDER", str(folder))
    (tmp_path / "choice.yaml").write_text(text.replace("{{question}}", "{{query}}"))
    with pytest.raises(UserError, match="load choice: UndefinedError: 'query' is undefined"):
        find_suite("lm_eval:choice", Options(tmp_path))


def test_a_task_that_leaves_no_room_for_a_prompt_is_refused(run, folder):
    small = small_run(data={"sequence_length": 8})
    with pytest.raises(UserError, match="task finish generates 8 tokens, which leaves no room"):
        find_suite("lm_eval:finish", Options(folder))(small, no_check)


def test_generation_that_is_not_there_is_refused_before_anything_runs(tmp_path, folder):
    text = TASKS["finish.yaml"].replace("FOLDER", str(folder))
    (tmp_path / "finish.yaml").write_text(text.replace("do_sample: false", "num_beams: 4"))
    with pytest.raises(UserError, match="task finish: generation_kwargs.num_beams is 4"):
        find_suite("lm_eval:finish", Options(tmp_path))


CODE = {
    "function": ("process_docs: !function code.run", "could not determine a constructor for the"),
    "verbatim tag": ("process_docs: !<!function> code.run", "A task file is plain YAML"),
    "class": ("class: code.Task", "class 'code.Task' would run Python"),
    "metric": ("metric_list: [{metric: ./code.py}]", "metric './code.py' is not one of the"),
    "include": ("include: ../other.yaml", "copy it there"),
    "template": ('doc_to_text: "{{cycler.__init__.__globals__.os}}"', "unsafe"),
}


@pytest.mark.parametrize("name", CODE)
def test_a_task_of_a_folder_runs_no_code(name, run, tmp_path, folder):
    line, message = CODE[name]
    key = line.partition(":")[0]
    lines = TASKS["choice.yaml"].replace("FOLDER", str(folder)).splitlines()
    kept = [each for each in lines if not each.startswith(f"{key}:")]
    (tmp_path / "choice.yaml").write_text("\n".join([*kept, line]))
    (tmp_path / "code.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(UserError, match=message):
        find_suite("lm_eval:choice", Options(tmp_path))(run, no_check)
